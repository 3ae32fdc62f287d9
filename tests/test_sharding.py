"""`strategy: fsdp` is `ddp`, to rounding: for every network and every knob, whatever the number of workers; and its
checkpoints are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from knob_cases import BENCHES, ON, WITH, Bench, defined, fresh, job_for, train
from processes import run_on_workers
from torch import Tensor, nn

from raynn import sharding
from raynn.checkpoint import load_newest, save_checkpoint
from raynn.collectives import Workers
from raynn.job import Job
from raynn.loop import Record, TrainingState
from raynn.sharding import average_gradients, blocks, gathered, place, uncuttable, weight_bytes

CLOCK = ("seconds", "examples_per_second")  # what two equal runs may differ in
PAIRS = defined()
# Knobs that live in layers or change rows do to a worker's rows what they do under ddp: in the quick tests the others,
# which see weights and gradients, are tried once, and beside them a network of each sort.
LIKELY = ("table", "images", "lstm language")
SEEING_WEIGHTS = [
    next((name, knob) for name in LIKELY if (name, knob) in PAIRS)
    for knob in ON
    if knob.startswith(("weight_", "gradient_", "l1", "l2", "max_", "spectral_norm", "ema", "swa", "average"))
    or knob in ("sam", "asam")
]
QUICK = [*SEEING_WEIGHTS, ("images", "dropout"), ("transformer", "dropout"), ("forecast", "l2")]


def strategy_of(job: Job, strategy: str, **optimization: Any) -> Job:
    """The job under that strategy."""
    return job.model_copy(
        update={
            "resources": job.resources.model_copy(update={"strategy": strategy}),
            "optimization": job.optimization.model_copy(update=optimization),
        }
    )


def job_with(name: str, knob: str, strategy: str) -> Job:
    return strategy_of(job_for(BENCHES[name], **{**WITH.get(knob, {}), knob: ON[knob]}), strategy)


def figures(state: TrainingState) -> list[Record]:
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in state.history]


Seen = tuple[dict[str, Tensor], list[Record], Tensor]


def seen(state: TrainingState, workers: Workers) -> Seen:
    """Weights that are scored and kept, records and norms; on the first worker."""
    found = gathered(state.evaluated.state_dict(), workers)
    kept = {name: x.clone() for name, x in found.items()} if workers.rank == 0 else {}
    return (kept, figures(state), state.norms_E2L)


def differences(one: Seen, other: Seen, tolerance: float) -> list[str]:
    """What differs by more than rounding: weights, records, norms."""
    found = [
        name for name, x in one[0].items() if not torch.allclose(other[0][name], x, rtol=10 * tolerance, atol=tolerance)
    ]
    for a, b in zip(one[1], other[1], strict=True):
        found += [f"{key} {a[key]} {b[key]}" for key in a if b[key] != pytest.approx(a[key], rel=tolerance, abs=1e-7)]
    return found + ([] if torch.allclose(one[2], other[2], rtol=10 * tolerance, atol=tolerance) else ["norms"])


def knobs_on_a_worker(workers: Workers, chosen: list[tuple[str, str]], strategy: str) -> dict[Any, Seen]:
    """One epoch of every pair."""
    return {
        (name, knob): seen(train(job_with(name, knob, strategy), BENCHES[name], epochs=1, workers=workers), workers)
        for name, knob in chosen
    }


def differing(chosen: list[tuple[str, str]], one: dict[Any, Seen], other: dict[Any, Seen]) -> dict[Any, list[str]]:
    return {pair: found for pair in chosen if (found := differences(one[pair], other[pair], 1e-5))}


def all_on_a_worker(workers: Workers, folder: Path) -> dict[str, Any]:
    """What the quick tests look at, in one process, as it takes longer to start than they do."""
    return {
        "knobs": knobs_on_a_worker(workers, QUICK, "fsdp"),
        "resumed": resuming_on_a_worker(workers, folder),
        "parts": parts_on_a_worker(workers),
        "gradients": gradients_on_a_worker(workers),
    }


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each of RESUMED, by one worker."""
    folder = tmp_path_factory.mktemp("begun")
    for name in RESUMED:
        bench, job, _ = bench_and_job(name, "fsdp")
        saved(folder / name / "alone", train(job, bench, epochs=2), Workers())
    return folder


@pytest.fixture(scope="module")
def two_workers(begun: Path) -> list[dict[str, Any]]:
    """What each of two workers has found."""
    return run_on_workers(all_on_a_worker, 2, begun, begun)


def test_what_sees_weights_trains_as_on_one_worker(two_workers: list[dict[str, Any]]) -> None:
    assert len(SEEING_WEIGHTS) == 16
    assert not differing(QUICK, knobs_on_a_worker(Workers(), QUICK, "ddp"), two_workers[0]["knobs"])


@pytest.mark.slow
def test_every_knob_with_every_network_trains_as_under_ddp(tmp_path: Path) -> None:
    found = {}
    for strategy in ("ddp", "fsdp"):
        (tmp_path / strategy).mkdir()
        found[strategy], _ = run_on_workers(knobs_on_a_worker, 2, tmp_path / strategy, PAIRS, strategy)
    assert not differing(PAIRS, found["ddp"], found["fsdp"])


# What else meets parts of weights: optimizers, pieces of batches, as many workers, going back to the best epoch.
BACK = {"rule": "divergence", "bound": -1.0, "warmup_epochs": 2, "reductions": 2}
COURSES: dict[str, tuple[str, dict[str, Any], dict[str, Any], float]] = {
    "sgd": ("table", {"weight_decay": 0.1}, {}, 1e-5),
    "adam in pieces": ("table", {"gradient_clip_norm": 0.1}, {"optimizer": "adam", "accumulate": 3}, 1e-4),
    "adamw, one row a piece": ("transformer", {"sam": 0.1}, {"optimizer": "adamw", "accumulate": 8}, 1e-4),
    "muon": ("residual", {"ema_decay": 0.9}, {"optimizer": "muon"}, 3e-3),  # orthogonalizes in 16 bits
    "muon of kernels": ("deep images", {}, {"optimizer": "muon"}, 3e-3),
    "bf16": ("deep images", {"swa_start": 0.3}, {"precision": "bf16"}, 3e-3),
    "lengths": ("steps of any length", {"average_last": 2}, {"optimizer": "adamw"}, 1e-4),
}


def bench_and_job(course: str, strategy: str) -> tuple[Bench, Job, float]:
    name, knobs, optimization, tolerance = COURSES[course]
    bench = BENCHES["lstm" if name == "steps of any length" else name]
    job = strategy_of(job_for(bench, 4, **knobs), strategy, **optimization)
    return bench, job.model_copy(update={"early_stopping": type(job.early_stopping)(**BACK)}), tolerance


def courses_on_a_worker(workers: Workers, names: list[str]) -> dict[Any, Seen]:
    found = {}
    for name in names:
        for strategy in ("ddp", "fsdp"):
            bench, job, _ = bench_and_job(name, strategy)
            found[name, strategy] = seen(train(job, bench, workers=workers), workers)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "names"), [(2, list(COURSES)), (3, ["adam in pieces", "muon"])], ids=["two", "three"]
)
def test_optimizers_pieces_and_going_back_are_as_under_ddp(count: int, names: list[str], tmp_path: Path) -> None:
    first, *_ = run_on_workers(courses_on_a_worker, count, tmp_path, names)
    for name in names:
        bench, job, tolerance = bench_and_job(name, "fsdp")
        assert not differences(first[name, "ddp"], first[name, "fsdp"], tolerance), name
        if name == "bf16":  # gradients in 16 bits depend on how rows are dealt, under ddp as well
            continue
        alone = seen(train(job, bench), Workers())  # one worker has all of the network, whatever the strategy
        assert not differences(alone, first[name, "fsdp"], tolerance), name


RESUMED = ("adam in pieces", "muon")


def saved(folder: Path, state: TrainingState, workers: Workers) -> None:
    kept = gathered(state.to_dict(), workers)
    if workers.rank == 0:
        save_checkpoint(folder, len(state.history), kept)
    workers.max(0.0)


def resumed(name: str, strategy: str, folder: Path, workers: Workers) -> TrainingState:
    bench, job, _ = bench_and_job(name, strategy)
    state = fresh(job, bench, workers)
    found, problems = load_newest(folder)
    assert found is not None
    assert not problems
    state.restore(found)
    return train(job, bench, state, workers=workers)


def resuming_on_a_worker(workers: Workers, folder: Path) -> dict[Any, Seen]:
    """Whole runs; runs that both strategies, and a worker alone, began."""
    found: dict[Any, Seen] = {}
    for name in RESUMED:
        bench, job, _ = bench_and_job(name, "fsdp")
        found[name, "through"] = seen(train(job, bench, workers=workers), workers)
        saved(folder / name / "fsdp", train(job, bench, epochs=2, workers=workers), workers)
        for begun, strategy in (("fsdp", "fsdp"), ("fsdp", "ddp"), ("alone", "fsdp")):
            found[name, begun, strategy] = seen(resumed(name, strategy, folder / name / begun, workers), workers)
    return found


def test_checkpoints_are_whole_and_go_on_anywhere(two_workers: list[dict[str, Any]], begun: Path) -> None:
    first, second = (found["resumed"] for found in two_workers)
    for name in RESUMED:
        tolerance = COURSES[name][3]
        through = first[name, "through"]
        again = first[name, "fsdp", "fsdp"]
        assert all(torch.equal(x, through[0][key]) for key, x in again[0].items()), f"{name}: not bit for bit"
        assert again[1] == through[1] == second[name, "through"][1]
        assert torch.equal(again[2], through[2])
        assert not differences(through, first[name, "fsdp", "ddp"], tolerance), name
        assert not differences(through, first[name, "alone", "fsdp"], tolerance), name
        here = seen(resumed(name, "ddp", begun / name / "fsdp", Workers()), Workers())
        assert not differences(through, here, tolerance), name
        ours, theirs = (load_newest(begun / name / who)[0] for who in ("fsdp", "alone"))
        assert shapes(ours) == shapes(theirs), name


def shapes(tree: Any) -> Any:
    """Of all tensors of nested values."""
    if isinstance(tree, dict):
        return {key: shapes(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [shapes(value) for value in tree]
    return (tree.shape, tree.dtype) if isinstance(tree, Tensor) else type(tree)


def parts_on_a_worker(workers: Workers) -> dict[str, Any]:
    """What a worker holds of a network, after steps and evaluations."""
    bench = BENCHES["residual"]
    state = train(strategy_of(job_for(bench, ema_decay=0.9), "fsdp", optimizer="adamw"), bench, workers=workers)
    moments = [value for each in state.optimizer.state.values() for value in each.values() if value.dim()]
    kinds = {
        "weights": list(state.model.parameters()),
        "averages": list(state.evaluated.parameters()),
        "moments": moments,
        "best weights": list(state.best_weights.values()),
    }
    return {name: [(tuple(x.shape), tuple(x.to_local().shape)) for x in held] for name, held in kinds.items()}


def test_each_worker_holds_its_rows_of_all_that_is_kept(two_workers: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(two_workers):
        for name, pairs in found["parts"].items():
            assert pairs, name
            for whole, part in pairs:
                half = -(-whole[0] // 2)
                assert part == (half if rank == 0 else whole[0] - half, *whole[1:]), name


class Reached(nn.Module):
    """Blocks whose outputs are views that the network changes in place, and one weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2))) for _ in range(3))
        self.tied = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.tied[1].weight = self.tied[0].weight
        self.norms = nn.ModuleList([nn.LayerNorm(4)])
        self.cells = nn.ModuleList([nn.GRU(4, 4)])

    def forward(self, x_BH: Tensor) -> Tensor:
        for layer in self.layers:
            y_B22 = layer(x_BH)
            y_B22 *= 2.0
            x_BH = y_B22.flatten(1).tanh()
        for layer in self.tied:
            x_BH = layer(x_BH)
        return self.norms[0](self.cells[0](x_BH[None])[0][0])


def gradients_on_a_worker(workers: Workers) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Reached()
    place(model, "fsdp", workers)
    model(torch.linspace(-1, 1, 12).view(3, 4)).square().sum().backward()
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}  # type: ignore[attr-defined]


def test_views_changed_in_place_and_weights_in_two_places_have_their_gradient(
    two_workers: list[dict[str, Any]],
) -> None:
    found = two_workers[0]["gradients"]
    torch.manual_seed(0)
    model = Reached()
    model(torch.linspace(-1, 1, 12).view(3, 4)).square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def names_of_blocks(model: nn.Module) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    return [names[block] for block in blocks(model)]


def test_blocks_are_the_elements_of_lists_that_stand_alone() -> None:
    assert names_of_blocks(Reached()) == ["layers.0", "layers.1", "layers.2"]
    found = {
        name: names_of_blocks(fresh(job_for(BENCHES[name]), BENCHES[name]).model)
        for name in ("residual", "transformer", "deep images", "lstm", "lstm language", "drawer")
    }
    assert found == {
        "residual": ["layers.0", "layers.1"],
        "transformer": ["layers.blocks.0"],
        "deep images": ["stages.0", "stages.1"],
        "lstm": ["layers.0", "layers.1"],
        "lstm language": [],
        "drawer": ["time.dense.0", "time.dense.2", "unet.down.0.0"],
    }


def test_what_a_share_takes() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 1, bias=False))
    assert weight_bytes(model, "ddp", 4) == weight_bytes(model, "fsdp", 1) == (4 * (20 + 30 + 5), 0)
    assert weight_bytes(model, "fsdp", 2) == (4 * (3 * 3 + 3 + 3 * 5 + 3 + 5), 4 * (20 + 30 + 5 - 5))


def test_a_number_without_an_axis_is_found() -> None:
    model = nn.Linear(2, 2)
    assert uncuttable(model) is None
    model.scale = nn.Parameter(torch.tensor(1.0))
    assert uncuttable(model) == "scale"


def averaged(workers: Workers) -> list[list[float] | None]:
    """Gradients of weights that fit in one bucket, in none, and that only the second worker has."""
    sharding.BUCKET_BYTES = 16  # in a process of its own
    network = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in ((2,), (3, 2), (2,), (1,))])
    for place_, parameter in enumerate(network[:3] if workers.rank else network[:2]):
        parameter.grad = torch.full_like(parameter, 10.0 * place_ + workers.rank)
    network[1].grad = torch.arange(6.0).reshape(2, 3).T * (workers.rank + 1)  # not row after row
    network[3].requires_grad = False
    average_gradients(network, workers)
    return [None if parameter.grad is None else parameter.grad.flatten().tolist() for parameter in network]


def test_gradients_are_averaged_in_buckets(tmp_path: Path) -> None:
    first, second = run_on_workers(averaged, 2, tmp_path)
    assert first == second == [[0.5, 0.5], [0.0, 4.5, 1.5, 6.0, 3.0, 7.5], [10.5, 10.5], None]
