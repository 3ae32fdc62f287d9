from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from raynn.networks.inputs import ImageNormalization, PeriodicEmbedding, PiecewiseLinearEmbedding, TableEmbedding
from raynn.preprocessing import InputSpec

BINS = ((0.0, 1.0, 3.0), (-1.0, 0.0, 1.0, 5.0))


def encoding(x: float, edges: tuple[float, ...]) -> list[float]:
    """Gorishniy et al. 2022, eq. 1, with a bin's fill kept within 0 .. 1."""
    return [min(1.0, max(0.0, (x - low) / (high - low))) for low, high in pairwise(edges)]


def test_piecewise_linear_embedding_is_a_linear_map_of_equation_1() -> None:
    embedding = PiecewiseLinearEmbedding(BINS, width=2)
    torch.nn.init.normal_(embedding.weight_bins)
    x_BF = torch.tensor([[-7.0, 0.5], [0.5, 9.0], [2.0, -0.25], [3.0, 1.0]])
    for x_F, out in zip(x_BF.tolist(), embedding(x_BF).reshape(4, 2, 2), strict=True):
        for column, x in enumerate(x_F):
            fill = torch.tensor(encoding(x, BINS[column]))
            from_bins = fill @ embedding.weight_bins[column, : len(fill)]
            expected = embedding.bias[column] + x * embedding.weight_number[column] + from_bins
            torch.testing.assert_close(out[column], expected)


def test_piecewise_linear_embedding_starts_linear() -> None:
    embedding = PiecewiseLinearEmbedding(BINS, width=3)
    low, middle, high = embedding(torch.tensor([[-1.0, -1.0], [1.0, 1.0], [3.0, 3.0]]))
    torch.testing.assert_close(middle - low, high - middle)


def test_the_bins_that_pad_a_column_never_fill() -> None:
    embedding = PiecewiseLinearEmbedding(BINS, width=2)
    torch.nn.init.ones_(embedding.weight_bins)
    x_BF = torch.full((1, 2), 100.0)
    linear = embedding.bias + 100.0 * embedding.weight_number
    torch.testing.assert_close(
        embedding(x_BF).reshape(2, 2) - linear, torch.tensor([[2.0, 2.0], [3.0, 3.0]]), atol=1e-4, rtol=0
    )


def test_periodic_embedding_is_equation_5() -> None:
    torch.manual_seed(0)
    embedding = PeriodicEmbedding(num_columns=2, width=3, num_frequencies=4, scale=0.5)
    x_BF = torch.tensor([[0.3, -1.2], [0.0, 2.0]])
    for x_F, out in zip(x_BF.tolist(), embedding(x_BF).reshape(2, 2, 3), strict=True):
        for column, x in enumerate(x_F):
            angles = [2 * math.pi * float(f) * x for f in embedding.frequency[column].detach()]
            waves = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
            expected = (waves @ embedding.weight_waves[column] + embedding.bias[column]).relu()
            torch.testing.assert_close(out[column], expected)


def test_initial_frequencies_have_the_deviation_asked_for() -> None:
    frequency = PeriodicEmbedding(50, 1, 400, scale=0.2).frequency.detach()
    # of a normal cut at 3 deviations, the deviation is 0.9866 of the whole's
    assert float(frequency.std()) == pytest.approx(0.2 * 0.9866, rel=0.03)
    assert float(frequency.abs().max()) <= 0.6


def test_images_are_normalized_per_channel() -> None:
    inputs = InputSpec(image_CHW=(2, 1, 2), image_mean=(100.0, 0.0), image_std=(50.0, 1.0))
    image_BCHW = torch.tensor([[[[0, 200]], [[255, 1]]]], dtype=torch.uint8)
    assert ImageNormalization(inputs)(image_BCHW).tolist() == [[[[-2.0, 2.0]], [[255.0, 1.0]]]]


@pytest.mark.parametrize(
    ("kind", "width"),
    [("none", 4 + 5), ("piecewise_linear", 2 + 2 * 6 + 5), ("periodic", 2 + 2 * 6 + 5)],
)
def test_every_number_enters_once(kind: str, width: int) -> None:
    # two numbers have bins; an indicator has none and a constant one bin: they enter as they are
    inputs = InputSpec(
        num_numeric=4, quantile_bins=((0.0, 1.0, 2.0), (), (0.0, 1.0), (0.0, 0.5, 1.0)), cardinalities=(4, 2)
    )
    table = TableEmbedding(inputs, kind, number_width=6)
    batch = {"numeric": torch.randn(3, 4), "categorical": torch.tensor([[0, 1], [3, 0], [1, 1]])}
    parts = table(batch)
    assert table.width == width == sum(part.shape[1] for part in parts)
    if kind != "none":
        assert torch.equal(parts[0], batch["numeric"][:, [1, 2]])
    leaf = batch["numeric"].requires_grad_()
    sum(part.sum() for part in table(batch)).backward()  # type: ignore[union-attr]
    assert leaf.grad is not None
    assert leaf.grad.any(0).all()


@pytest.mark.parametrize(("size", "width"), [(2, 2), (10, 6), (100, 21), (10_000, 50)])
def test_the_default_width_of_a_category(size: int, width: int) -> None:
    assert TableEmbedding(InputSpec(cardinalities=(size,))).width == width
    assert TableEmbedding(InputSpec(cardinalities=(size,)), category_width=7).width == 7


def test_a_table_without_columns_has_no_parts() -> None:
    table = TableEmbedding(InputSpec(sequence_TC=(3, 1)))
    assert (table.width, table({})) == (0, [])
