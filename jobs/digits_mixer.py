"""A network of one's own: an MLP-Mixer (Tolstikhin et al. 2021). docs/custom_network.md explains.

Shapes: B rows, P patches, D features of a patch, K outputs.
"""

from torch import Tensor, nn

from raynn.dropout import Dropout
from raynn.networks.inputs import ImageNormalization
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings


class Mixer(nn.Module):
    """Patches, mixed over places and over features in turn, their mean, a linear head."""

    def __init__(self, inputs: InputSpec, dropout: float, patch: int, width: int, blocks: int) -> None:
        super().__init__()
        channels, height, width_px = inputs.image_CHW
        num_patches = (height // patch) * (width_px // patch)
        self.normalize = ImageNormalization(inputs)
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.over_places = nn.ModuleList(_dense(num_patches) for _ in range(blocks))
        self.over_features = nn.ModuleList(_dense(width) for _ in range(blocks))
        self.dropout = Dropout(dropout, width, place=0)  # the same masks for any number of workers
        self.head = nn.Linear(width, inputs.num_outputs)

    def forward(self, batch: dict[str, Tensor], key_B: Tensor | None = None) -> Tensor:
        """Outputs [B, K] of images [B, C, H, W] in 0 .. 255."""
        x_BPD = self.embed(self.normalize(batch["image"])).flatten(2).transpose(1, 2)
        for i, (places, features) in enumerate(zip(self.over_places, self.over_features, strict=True)):
            x_BPD = x_BPD + places(self.norms[2 * i](x_BPD).transpose(1, 2)).transpose(1, 2)
            x_BPD = x_BPD + features(self.norms[2 * i + 1](x_BPD))
        return self.head(self.dropout(x_BPD.mean(1), key_B))


def _dense(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))


def build(
    inputs: InputSpec, regularization: RegularizationSettings, patch: int = 2, width: int = 64, blocks: int = 2
) -> nn.Module:
    """What `network.target` names: the job's `network.settings` arrive as keyword arguments."""
    return Mixer(inputs, regularization.dropout, patch, width, blocks)
