"""Flow matching (Lipman et al. 2023; rectified flow, Liu et al. 2023): a velocity carries noise to images in unit time.

Training: a point x_t = (1 - t) x_0 + t x_1 on the straight line from noise x_0 to an image x_1; the network learns the
mean of x_1 - x_0 given x_t and t, by squared error. Drawing: dx/dt = velocity from t = 0 to 1, from noise.

Shapes: B rows, C channels, H height, W width, P pixels (C * H * W), F frequencies, E width of the condition.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raynn.errors import JobError
from raynn.networks.drawing import ImageGenerator
from raynn.networks.inputs import ImageNormalization
from raynn.networks.unet import MapSettings, UNet, Width
from raynn.preprocessing import InputSpec
from raynn.randomness import column_salts, normal, random_bits
from raynn.regularization import Probability, RegularizationSettings


class FlowMatchingSettings(MapSettings):
    """Settings of flow matching; `steps` and `guidance` are of drawing alone, and can be changed for every call."""

    attention: Annotated[bool, Field(description="each place of the smallest map sees every other")] = True
    condition_width: Annotated[Width, Field(description="width of the vector that tells time and class")] = 256
    time: Annotated[
        Literal["uniform", "logit_normal"],
        Field(description="distribution of t in training; logit_normal prefers the middle (Esser et al. 2024, eq. 19)"),
    ] = "logit_normal"
    label_dropout: Annotated[
        Probability, Field(description="share of training images whose class is withheld, for guidance")
    ] = 0.1
    steps: Annotated[Width, Field(description="of the midpoint method, two evaluations each")] = 20
    guidance: Annotated[
        float, Field(ge=0.0, description="1: as learned; more: more typical of the class asked for, and less varied")
    ] = 2.0


class TimeEmbedding(nn.Module):
    """Sines and cosines of 64 frequencies (Vaswani et al. 2017, section 3.5, for t * 1000), then two dense layers."""

    frequency_F: Tensor

    def __init__(self, width: int, num_frequencies: int = 64) -> None:
        super().__init__()
        exponent_F = torch.arange(num_frequencies) / num_frequencies
        self.register_buffer("frequency_F", 1000.0 * 10_000.0**-exponent_F, persistent=False)
        self.dense = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time_B: Tensor) -> Tensor:
        """Embeddings [B, E]."""
        angle_BF = time_B[:, None] * self.frequency_F
        return self.dense(torch.cat([angle_BF.cos(), angle_BF.sin()], dim=1))


class FlowMatching(ImageGenerator):
    """A U-Net that tells the velocity at (x_t, t, class)."""

    noise_P: Tensor
    time_1: Tensor
    label_1: Tensor

    def __init__(
        self, settings: FlowMatchingSettings, inputs: InputSpec, regularization: RegularizationSettings
    ) -> None:
        super().__init__(inputs)
        self.settings = settings
        places = itertools.count()
        width = settings.condition_width
        self.image = ImageNormalization(inputs)
        self.time = TimeEmbedding(width)
        self.label = nn.Embedding(self.num_classes + 1, width) if self.num_classes else None  # the last: no class told
        self.unet = UNet(self.image_CHW[0], settings, settings.attention, width, regularization.dropout, places)
        # non-persistent: they follow from the sizes
        self.register_buffer("noise_P", column_salts(next(places), math.prod(self.image_CHW)), persistent=False)
        self.register_buffer("time_1", column_salts(next(places), 1), persistent=False)
        self.register_buffer("label_1", column_salts(next(places), 1), persistent=False)

    def forward(self, batch: dict[str, Tensor], key_B: Tensor) -> Tensor:
        """Losses [B, 1]: squared error of the velocity, mean over pixels and channels; its variance, 2 on average over
        images, before training.
        """
        image_BCHW = self.image(batch["image"])
        noise_BCHW = self._noise(key_B).to(image_BCHW.dtype)
        time_B = normal(key_B, self.time_1)[:, 0].to(image_BCHW.dtype)
        # of a normal number: its distribution function is uniform, its logistic function logit-normal
        time_B = time_B.sigmoid() if self.settings.time == "logit_normal" else torch.special.ndtr(time_B)
        class_B = self._withheld(batch["target"], key_B) if self.num_classes else None
        point_BCHW = torch.lerp(noise_BCHW, image_BCHW, time_B[:, None, None, None])
        error_BCHW = self.velocity(point_BCHW, time_B, class_B, key_B) - (image_BCHW - noise_BCHW)
        return error_BCHW.square().flatten(1).mean(1, keepdim=True)

    def velocity(self, x_BCHW: Tensor, time_B: Tensor, class_B: Tensor | None, key_B: Tensor | None = None) -> Tensor:
        """Velocities [B, C, H, W] of standardized pixels a unit of time."""
        condition_BE = self.time(time_B)
        if self.label is not None:
            condition_BE = condition_BE + self.label(class_B)
        return self.unet(x_BCHW, condition_BE, key_B).to(x_BCHW.dtype)

    def draw(self, key_B: Tensor, class_B: Tensor | None, steps: int | None, guidance: float | None) -> Tensor:
        """Pictures [B, C, H, W] in 0..255, not yet rounded."""
        strength = self.settings.guidance if guidance is None else guidance
        if class_B is None and guidance is not None:
            raise JobError(
                f"guidance = {guidance:g} asks for classes, and the model was trained without data.target: leave it out"
            )

        def velocity(x_BCHW: Tensor, time: float) -> Tensor:
            time_B = x_BCHW.new_full((len(x_BCHW),), time)
            if class_B is None or strength == 1.0:
                return self.velocity(x_BCHW, time_B, class_B)
            # classifier-free guidance (Ho & Salimans 2022, eq. 6), both in one batch
            both_B = torch.cat([class_B, torch.full_like(class_B, self.num_classes)])
            told, untold = self.velocity(x_BCHW.repeat(2, 1, 1, 1), time_B.repeat(2), both_B).chunk(2)
            return torch.lerp(untold, told, strength)

        x_BCHW = integrate(velocity, self._noise(key_B), self.settings.steps if steps is None else steps)
        return x_BCHW * self.image.std_C11 + self.image.mean_C11

    def _noise(self, key_B: Tensor) -> Tensor:
        """Standard normal images [B, C, H, W]."""
        return normal(key_B, self.noise_P).reshape(-1, *self.image_CHW)

    def _withheld(self, class_B: Tensor, key_B: Tensor) -> Tensor:
        """In training, some classes replaced by the last, `none told`."""
        if not self.training:
            return class_B
        withheld_B = random_bits(key_B, self.label_1)[:, 0] < int(self.settings.label_dropout * 2**31)
        return class_B.masked_fill(withheld_B, self.num_classes)


def integrate(velocity: Callable[[Tensor, float], Tensor], x: Tensor, steps: int) -> Tensor:
    """`x` carried from t = 0 to 1 by dx/dt = velocity(x, t): the midpoint method, of second order, which asks for no
    velocity at the ends, where training has seen the fewest points.
    """
    for step in range(steps):
        halfway = x + velocity(x, step / steps) / (2 * steps)
        x = x + velocity(halfway, (step + 0.5) / steps) / steps
    return x
