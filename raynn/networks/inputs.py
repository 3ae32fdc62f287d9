"""From a batch's columns to vectors: embeddings of numbers, categories and tokens, normalized images.

Shapes: B rows, F numeric columns, T bins, N frequencies, E embedding width, D width of the joint vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raynn.dropout import TokenDropout
from raynn.preprocessing import InputSpec

Batch = Mapping[str, Tensor]


def embedding_width(num_categories: int) -> int:
    """How many numbers stand for a category by default: fastai's rule, with a smaller maximum."""
    return min(50, round(1.6 * num_categories**0.56))


class PiecewiseLinearEmbedding(nn.Module):
    """Each number by its place among quantile bins (Gorishniy et al. 2022, section 3.2, eq. 1), then a linear map.

    The map of the raw number is added, and that of the bins starts at zero, so that training starts from a linear
    embedding (their later "version B"). Bins of a column with fewer edges are padded with bins that never fill.
    """

    lower_FT: Tensor
    width_FT: Tensor
    real_FT: Tensor

    def __init__(self, bins: tuple[tuple[float, ...], ...], width: int) -> None:
        super().__init__()
        num_columns, num_bins = len(bins), max(len(edges) - 1 for edges in bins)
        lower_FT, width_FT = torch.zeros(num_columns, num_bins), torch.ones(num_columns, num_bins)
        self.register_buffer("real_FT", torch.zeros(num_columns, num_bins))
        for column, edges in enumerate(bins):
            edge = torch.tensor(edges)
            lower_FT[column, : len(edges) - 1] = edge[:-1]
            width_FT[column, : len(edges) - 1] = edge.diff()
            self.real_FT[column, : len(edges) - 1] = 1.0
        self.register_buffer("lower_FT", lower_FT)
        self.register_buffer("width_FT", width_FT)
        self.weight_bins = nn.Parameter(torch.zeros(num_columns, num_bins, width))
        self.weight_number = nn.Parameter(torch.empty(num_columns, width).uniform_(-1.0, 1.0))
        self.bias = nn.Parameter(torch.empty(num_columns, width).uniform_(-1.0, 1.0))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Embeddings [B, F * E]."""
        fill_BFT = ((x_BF[:, :, None] - self.lower_FT) / self.width_FT).clamp(0.0, 1.0) * self.real_FT
        from_bins_FBE = torch.bmm(fill_BFT.transpose(0, 1), self.weight_bins)
        linear_BFE = torch.addcmul(self.bias, x_BF[:, :, None], self.weight_number)
        return (linear_BFE + from_bins_FBE.transpose(0, 1)).flatten(1)


class PeriodicEmbedding(nn.Module):
    """Sines and cosines of learned frequencies, a linear map, ReLU (Gorishniy et al. 2022, section 3.3, eq. 5).

    `scale` is the standard deviation of the initial frequencies, their most important setting.
    """

    def __init__(self, num_columns: int, width: int, num_frequencies: int, scale: float) -> None:
        super().__init__()
        initial = nn.init.trunc_normal_(torch.empty(num_columns, num_frequencies), std=scale, a=-3 * scale, b=3 * scale)
        self.frequency = nn.Parameter(initial)
        bound = 1.0 / math.sqrt(2 * num_frequencies)
        self.weight_waves = nn.Parameter(torch.empty(num_columns, 2 * num_frequencies, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_columns, width).uniform_(-bound, bound))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Embeddings [B, F * E]."""
        angle_BFN = 2 * math.pi * self.frequency * x_BF[:, :, None]
        waves_FBN = torch.cat([angle_BFN.cos(), angle_BFN.sin()], dim=-1).transpose(0, 1)
        return (torch.bmm(waves_FBN, self.weight_waves).transpose(0, 1) + self.bias).relu().flatten(1)


class ImageNormalization(nn.Module):
    """Pixels 0..255 to zero mean and unit deviation a channel, over the training images."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, inputs: InputSpec) -> None:
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(inputs.image_mean).reshape(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(inputs.image_std).reshape(-1, 1, 1))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalized float images, same shape."""
        return (image_BCHW.to(self.mean_C11.dtype) - self.mean_C11) / self.std_C11


class TokenEmbedding(nn.Module):
    """Tokens as vectors; token 0, unknown or padding, is zeros and stays so."""

    def __init__(self, vocabulary_size: int, width: int, input_dropout: float, place: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)
        self.dropout = TokenDropout(input_dropout, vocabulary_size, place)

    def forward(self, tokens_BT: Tensor, key_B: Tensor | None) -> Tensor:
        """Vectors [B, T, E]."""
        return self.dropout(self.embedding(tokens_BT), tokens_BT, key_B)


class TableEmbedding(nn.Module):
    """Numbers and categories of a row as one vector; `width` says how long it is (0: the data have neither)."""

    def __init__(
        self,
        inputs: InputSpec,
        number_embedding: str = "none",
        number_width: int = 16,
        number_frequencies: int = 48,
        number_scale: float = 0.1,
        category_width: int | None = None,
    ) -> None:
        super().__init__()
        binned = [i for i, edges in enumerate(inputs.quantile_bins) if len(edges) > 2]
        embedded = binned if number_embedding != "none" else []
        plain = [i for i in range(inputs.num_numeric) if i not in set(embedded)]
        self.register_buffer("embedded", torch.tensor(embedded, dtype=torch.int64), persistent=False)
        self.register_buffer("plain", torch.tensor(plain, dtype=torch.int64), persistent=False)
        self.numbers: nn.Module | None = None
        if embedded and number_embedding == "piecewise_linear":
            self.numbers = PiecewiseLinearEmbedding(tuple(inputs.quantile_bins[i] for i in embedded), number_width)
        elif embedded:
            self.numbers = PeriodicEmbedding(len(embedded), number_width, number_frequencies, number_scale)
        widths = [category_width or embedding_width(size) for size in inputs.cardinalities]
        embeddings = [nn.Embedding(size, width) for size, width in zip(inputs.cardinalities, widths, strict=True)]
        with torch.no_grad():
            for embedding in embeddings:
                embedding.weight[0].zero_()  # the unknown bucket: what training never saw adds nothing
        self.categories = nn.ModuleList(embeddings)
        self.width = len(plain) + len(embedded) * number_width + sum(widths)

    embedded: Tensor
    plain: Tensor

    def forward(self, batch: Batch) -> list[Tensor]:
        """The parts of the vector, each [B, ...]; their widths sum to `width`."""
        parts = []
        if len(self.plain):
            numeric_BF = batch["numeric"]
            parts.append(numeric_BF if self.numbers is None else numeric_BF.index_select(1, self.plain))
        if self.numbers is not None:
            parts.append(self.numbers(batch["numeric"].index_select(1, self.embedded)))
        parts += [embed(batch["categorical"][:, i]) for i, embed in enumerate(self.categories)]
        return parts
