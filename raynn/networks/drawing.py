"""What generators of images share: pictures drawn one by one, each a function of its seed and number alone.

Shapes: B rows of a batch, N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from raynn.errors import JobError
from raynn.preprocessing import InputSpec
from raynn.randomness import row_keys

EPOCH = 2**32  # of the keys of pictures; training never gets there, so that none repeats its noise
BATCH_ROWS = 256


class ImageGenerator(nn.Module, ABC):
    """A network that draws images like those it was shown, of a class if these had one."""

    num_classes: int  # 0: images have none

    def __init__(self, inputs: InputSpec) -> None:
        super().__init__()
        if inputs.image_CHW is None:
            raise JobError(
                "network.kind = 'image_generator' needs an image column, and the features have none; "
                "use network.kind: feedforward for a table"
            )
        self.image_CHW = inputs.image_CHW
        self.num_classes = len(inputs.classes or ())

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], key_B: Tensor) -> Tensor:
        """Losses [B, 1], or [B, 2] with a bound of the bits per dimension beside them; the keys give all noise."""

    @abstractmethod
    def draw(self, key_B: Tensor, class_B: Tensor | None, steps: int | None, guidance: float | None) -> Tensor:
        """Pictures [B, C, H, W] in 0..255, not yet rounded."""

    @torch.no_grad()
    def generate(
        self,
        count: int,
        classes: Tensor | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Pictures, uint8 [N, C, H, W]. Picture i is a function of (seed, i, its class), whatever `count` is.

        Args:
            count: N, how many, at least 1.
            classes: int64 [N], the class index of each; default: all classes in turn, from the first.
            seed: another seed gives other pictures.
            steps: of the sampler, where there is one; default: the job's.
            guidance: how strongly classes are asked for, where they can be; default: the job's.

        Raises:
            JobError: no picture; classes that are not there, or not one a picture; steps or guidance that this network
                has not.
        """
        class_N = self._checked(count, classes)
        device = next(self.parameters()).device
        key_N = torch.from_numpy(row_keys(seed, EPOCH, np.arange(count))).to(device)
        pictures = []
        was_training = self.training
        self.eval()
        for key_B, class_B in zip(key_N.split(BATCH_ROWS), class_N.to(device).split(BATCH_ROWS), strict=True):
            drawn_BCHW = self.draw(key_B, class_B if self.num_classes else None, steps, guidance)
            pictures.append(drawn_BCHW.round().clamp(0, 255).to(torch.uint8))
        self.train(was_training)
        return torch.cat(pictures)

    def _checked(self, count: int, classes: Tensor | None) -> Tensor:
        """The class of each picture [N]."""
        if count < 1:
            raise JobError(f"count = {count} must be at least 1, the pictures to draw")
        if classes is None:
            return torch.arange(count) % max(1, self.num_classes)
        if not self.num_classes:
            raise JobError("classes are asked for, and the model was trained without data.target: leave them out")
        if classes.shape != (count,):
            raise JobError(f"classes have the shape {tuple(classes.shape)}, and count = {count}: give one a picture")
        outside = classes[(classes < 0) | (classes >= self.num_classes)].tolist()
        if outside:
            raise JobError(
                f"class {outside[0]} must be within 0 .. {self.num_classes - 1}, the classes of the training images"
            )
        return classes
