"""Rows mixed in pairs: the right combination, with the right partner, by the right share, at the right depth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from knob_cases import BENCHES, batch_of, fresh, job_for
from torch import Tensor, nn

from raynn.collectives import Workers
from raynn.mixing import PLACE, MixingPoint, boxes, hidden_mixed, mixed, symmetric_beta
from raynn.objectives import loss_per_row
from raynn.randomness import column_salts, random_bits, row_keys
from raynn.regularization import RegularizationSettings


def keys(num: int, epoch: int = 0) -> Tensor:
    return torch.from_numpy(row_keys(0, epoch, np.arange(num)))


def partners(key_B: Tensor) -> Tensor:
    """The next of each row in the ring, by hand."""
    hash_B = random_bits(key_B, column_salts(PLACE, 6)[5:])[:, 0].tolist()
    ring = sorted(range(len(hash_B)), key=hash_B.__getitem__)
    after = {row: ring[(place + 1) % len(ring)] for place, row in enumerate(ring)}
    return torch.tensor([after[row] for row in range(len(ring))])


def mix(batch: dict[str, Tensor], task: str = "classification", **fields: float) -> dict[str, Tensor]:
    key_B = keys(len(batch["target"]))
    return mixed(batch, key_B, RegularizationSettings(**fields), task, Workers())  # type: ignore[arg-type]


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "numeric": torch.randn(300, 4),
        "image": torch.randint(256, (300, 2, 8, 6), dtype=torch.uint8),
        "target": torch.randint(3, (300,)),
    }


def test_off_is_absent(batch: dict[str, Tensor]) -> None:
    assert mix(batch) is batch


def test_mixup_is_the_convex_combination_of_rows_and_of_losses(batch: dict[str, Tensor]) -> None:
    found, other = mix(batch, mixup=0.4), partners(keys(300))
    share_B = found["share"].double()
    assert (other != torch.arange(300)).all()
    for name in ("numeric", "image"):
        share = share_B.reshape(-1, *([1] * (batch[name].dim() - 1)))
        expected = share * batch[name].double() + (1 - share) * batch[name][other].double()
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(found["target"], batch["target"])
    assert torch.equal(found["other_target"], batch["target"][other])
    logits_BK = torch.randn(300, 3)
    soft_BK = share_B[:, None] * F.one_hot(batch["target"], 3) + (1 - share_B)[:, None] * F.one_hot(
        batch["target"][other], 3
    )
    expected_B = -(soft_BK * logits_BK.double().log_softmax(1)).sum(1)  # cross-entropy of the mixed target
    torch.testing.assert_close(loss_per_row(logits_BK, found, "classification").double(), expected_B, rtol=1e-5, atol=0)


def test_mixup_of_values_mixes_them_too(batch: dict[str, Tensor]) -> None:
    values = batch | {"target": torch.randn(300)}
    found, other = mix(values, "regression", mixup=0.4), partners(keys(300))
    share_B = ((found["numeric"] - values["numeric"][other]) / (values["numeric"] - values["numeric"][other]))[:, 0]
    expected = share_B * values["target"] + (1 - share_B) * values["target"][other]
    torch.testing.assert_close(found["target"], expected, rtol=1e-3, atol=1e-3)
    assert "share" not in found


def test_cutmix_pastes_a_box_and_counts_its_pixels(batch: dict[str, Tensor]) -> None:
    found, other = mix(batch, cutmix=1.0), partners(keys(300))
    own, theirs = batch["image"], batch["image"][other]
    pasted_BHW = ((found["image"] != own) & (found["image"] == theirs)).any(1)
    assert ((found["image"] == own) | (found["image"] == theirs)).all()
    kept_B = 1 - pasted_BHW.float().mean((1, 2))
    assert ((found["share"] - kept_B).abs() < 0.05).all()  # pixels that are alike in both are not seen as pasted
    assert torch.equal(found["numeric"], batch["numeric"])
    box_BHW = boxes(1 - torch.linspace(0, 1, 300), torch.rand(300, 2), torch.Size((8, 6)))
    for box in box_BHW.numpy():
        rows, columns = box.any(1), box.any(0)
        assert (box == rows[:, None] & columns).all(), "a box, or nothing"


def test_a_box_in_the_middle_has_the_area_it_says() -> None:
    for share in (0.0, 0.25, 0.5625, 1.0):
        (box_HW,) = boxes(torch.tensor([share]), torch.tensor([[0.5, 0.5]]), torch.Size((16, 8)))
        assert float(box_HW.float().mean()) == share


def test_where_both_are_on_each_row_has_one_of_them(batch: dict[str, Tensor]) -> None:
    found = mix(batch, mixup=1.0, cutmix=1.0)
    other = partners(keys(300))
    cut_B = ((found["image"] == batch["image"]) | (found["image"] == batch["image"][other])).flatten(1).all(1)
    assert abs(int(cut_B.sum()) - 150) < 5 * (300 / 4) ** 0.5
    assert torch.equal(found["numeric"][cut_B], batch["numeric"][cut_B])
    assert (found["numeric"][~cut_B] != batch["numeric"][~cut_B]).any(1).all()


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 3.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    first, second = (torch.from_numpy(np.random.default_rng(seed).uniform(size=20_000)) for seed in (1, 2))
    draws = symmetric_beta(alpha, first, second).double().numpy()
    low = draws[draws < 0.5]  # near 1 a share is rounded
    assert abs(len(low) - 10_000) < 5 * 5000**0.5
    cdf = scipy.stats.beta(alpha, alpha).cdf
    assert scipy.stats.kstest(low, lambda x: 2 * cdf(x)).statistic < 1.63 / len(low) ** 0.5  # 1 % level


def test_pairs_do_not_depend_on_the_order_of_the_rows(batch: dict[str, Tensor]) -> None:
    key_B, settings = keys(300), RegularizationSettings(mixup=0.4)
    order = torch.randperm(300)
    straight = mixed(batch, key_B, settings, "classification", Workers())
    turned = mixed({name: x[order] for name, x in batch.items()}, key_B[order], settings, "classification", Workers())
    assert all(torch.equal(straight[name][order], turned[name]) for name in straight)


def beside(bench: str, depth: float | None = None) -> tuple[nn.Module, dict[str, Tensor], Tensor, Tensor]:
    """A network in float64 in training, a batch with the partners beside, its keys, and who the partners are."""
    model = fresh(job_for(BENCHES[bench]), BENCHES[bench]).model.double().train()
    batch, key_B = batch_of(BENCHES[bench]), keys(21)
    batch = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
    found = mixed(batch, key_B, RegularizationSettings(manifold_mixup=1.0), BENCHES[bench].inputs.task or "", Workers())
    found["share"] = found["share"].double()
    if depth is not None:
        found["depth"] = torch.full_like(found["depth"], depth)
    return model, found, key_B, partners(key_B)


@pytest.mark.parametrize("bench", ["table", "residual"])
def test_manifold_mixup_mixes_each_row_at_its_own_depth(bench: str) -> None:
    model, found, key_B, other = beside(bench)
    num_points = 1 + len(model.layers)  # type: ignore[arg-type]
    rows = {name: x for name, x in found.items() if name in ("numeric", "categorical")}
    outputs = hidden_mixed(model, found, key_B)
    depths = []
    for row, share in enumerate(found["share"].tolist()):
        pair = [{name: x[[i]] for name, x in rows.items()} for i in (row, int(other[row]))]
        first, second = (torch.cat([part for part in model.table(each)], dim=1) for each in pair)  # type: ignore[operator]
        depths.append(int(float(found["depth"][row]) * num_points))
        for depth, layer in enumerate([nn.Identity(), *model.layers]):  # type: ignore[misc]
            if depth:
                first, second = layer(first, None), layer(second, None)
            if depth == depths[-1]:
                first = second = share * first + (1 - share) * second
        expected_1K = model.head(model.last_norm(first))  # type: ignore[operator]
        torch.testing.assert_close(outputs[[row]], expected_1K, rtol=1e-9, atol=1e-12)
    assert set(depths) == set(range(num_points)), "every depth is drawn"
    assert all(point.share_B is None for point in model.modules() if isinstance(point, MixingPoint))


@pytest.mark.parametrize("bench", ["images", "steps"])
def test_at_the_input_it_is_mixup_statistics_of_the_batch_included(bench: str) -> None:
    model, found, key_B, other = beside(bench, depth=0.0)
    name = BENCHES[bench].columns[0]
    share = found["share"].reshape(-1, *([1] * (found[name].dim() - 1)))
    by_hand = {name: share * found[name].double() + (1 - share) * found[name][other].double()}
    torch.testing.assert_close(hidden_mixed(model, found, key_B), model(by_hand, key_B), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("depth", [0.0, 0.5, 0.99])
def test_statistics_of_the_batch_are_those_of_the_mixed_rows(depth: float) -> None:
    """Where a row is mixed its partner becomes the same: what a normalization sees is each mixture twice."""
    model, found, key_B, _ = beside("images", depth)
    seen: list[Tensor] = []
    for point in model.modules():
        if isinstance(point, MixingPoint):
            point.register_forward_hook(lambda module, args, x: seen.append(x))
    hidden_mixed(model, found, key_B)
    first, second = seen[-1].chunk(2)
    assert torch.equal(first, second)
    assert not torch.equal(*seen[0].chunk(2)) or depth == 0.0


def test_what_joins_late_is_mixed_for_every_row() -> None:
    """A column beside an image or a sequence passes the depths by."""
    point, last = MixingPoint(), MixingPoint(last=True)
    own_B1, other_B1 = torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0], [6.0]])

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.points = nn.ModuleList([point, last])

        def forward(self, batch: dict[str, Tensor], key_B: Tensor) -> Tensor:
            return torch.cat([point(batch["numeric"]), last(batch["numeric"])], dim=1)

    batch = {
        "numeric": own_B1,
        "other_numeric": other_B1,
        "other_key": torch.zeros(2),
        "share": torch.tensor([0.25, 0.5]),
        "depth": torch.tensor([0.0, 0.9]),
    }
    expected = torch.tensor([[4.0, 4.0], [4.0, 4.0]])
    assert torch.equal(hidden_mixed(Two(), batch, torch.zeros(2)), expected)


def test_manifold_mixup_mixes_targets_as_mixup_does(batch: dict[str, Tensor]) -> None:
    found, other = mix(batch, manifold_mixup=0.4), partners(keys(300))
    assert torch.equal(found["other_target"], batch["target"][other])
    assert torch.equal(found["other_image"], batch["image"][other])
    assert torch.equal(found["image"], batch["image"])
    assert torch.equal(found["other_key"], keys(300)[other])
    values = batch | {"target": torch.randn(300)}
    mixed_values = mix(values, "regression", manifold_mixup=0.4)
    share_B = mixed_values["share"]
    expected = share_B * values["target"] + (1 - share_B) * values["target"][other]
    torch.testing.assert_close(mixed_values["target"], expected, rtol=1e-5, atol=1e-5)
