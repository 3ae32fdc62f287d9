"""A run looked at for its report: its files, and with its model what it predicts, gets wrong and generates.

What cannot be had, for instance because the data are gone, is said in `missing` and stops nothing.

Shapes: N rows or windows, K classes or targets, H steps, T tokens, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raynn.anatomy import Layer, first_filters, layers_of
from raynn.batches import evaluation_batches
from raynn.corpus import encoding_of
from raynn.encoded import itself
from raynn.errors import RaynnError, RunError
from raynn.findings import ClassFindings, ForecastFindings, TokenFindings, ValueFindings, class_findings, spread
from raynn.folder import NORMS, check_run
from raynn.forecast import named
from raynn.fragments import read_fragment
from raynn.job import Job
from raynn.objectives import token_losses
from raynn.outputs import SPLITS, outputs_of
from raynn.pictures import grid, png
from raynn.preparation import Prepared, located
from raynn.run import Run, open_run
from raynn.samples import draw_images, write_texts
from raynn.shards import Shard
from raynn.tasks import understand_job

NUM_WORST = 12
NUM_WINDOWS = 64  # of text, whose tokens are looked at
NUM_TEXTS, TEXT_TOKENS, PROMPT_CHARACTERS = 3, 300, 24
NUM_IMAGES, IMAGES_OF_CLASS, MAX_CLASSES = 36, 5, 10
MAX_BYTES = 2**30  # sources larger than this are not read again at the end of a run
VALUES_SHOWN = 12


@dataclass(frozen=True)
class Case:
    """One row, and what was said of it."""

    row: str  # file and row
    actual: str
    predicted: str
    error: float  # nats, or in the target's unit
    inputs: tuple[tuple[str, str], ...] = ()
    picture: bytes | None = None  # PNG
    curve: tuple[tuple[float, ...], ...] = ()  # of a sequence: its channels


@dataclass
class Inspection:
    """All that a report tells of a run."""

    folder: Path
    job: Job
    result: dict[str, Any]
    records: list[dict[str, Any]]
    environment: dict[str, Any]
    bad_rows: list[dict[str, Any]]
    norms: list[dict[str, Any]] = field(default_factory=list)  # of each layer, epoch after epoch
    run: Run | None = None
    split: str = ""  # whose predictions are shown: test, or validation where there is no test set
    rows_of_splits: dict[str, int] = field(default_factory=dict)
    class_counts: dict[str, list[int]] = field(default_factory=dict)
    logits_NK: NDArray[np.float32] | None = None
    classes: ClassFindings | None = None
    values: ValueFindings | None = None
    forecasts: list[ForecastFindings] = field(default_factory=list)
    times_NH: NDArray[np.str_] | None = None
    series_N: NDArray[np.str_] | None = None  # whose windows they are
    tokens: TokenFindings | None = None
    texts: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    worst: list[Case] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    filters: tuple[str, bytes] | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def task(self) -> str:
        """As trained."""
        return str(self.run.preprocessing.task if self.run else self.job.task)


def read_records(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a last line cut short, as of a run that is being written, is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def inspect(folder: Path, *, max_bytes: int | None = None) -> Inspection:
    """Looks at a run folder, and through its model at its data again.

    Args:
        folder: of a run, ended or not.
        max_bytes: larger local sources are not read.

    Raises:
        RunError: it is no run folder.
        JobError: its job.yaml is damaged.
    """
    check_run(folder)
    found = Inspection(
        folder,
        Job.load(folder / "job.yaml"),
        read_object(folder / "result.json"),
        read_records(folder / "metrics.jsonl"),
        read_object(folder / "environment.json"),
        read_records(folder / "bad_rows.jsonl"),
        read_records(folder / NORMS),
    )
    try:
        found.run = open_run(folder)
    except RaynnError as error:
        found.missing.append(f"The network, its predictions and what the columns held: {error}.")
        return found
    found.layers = layers_of(found.run.model)
    if (filters := first_filters(found.run.model)) is not None:
        found.filters = filters[0], png(grid(filters[1], zoom=max(1, 24 // filters[1].shape[-1])))
    _guarded(found, "What the network generates", lambda: _generate(found))
    size = bytes_of_sources(found.job)
    if max_bytes is not None and size > max_bytes:
        found.missing.append(
            f"Predictions, errors and the sizes of the splits: the data hold {size / 2**30:.1f} GiB, too much to read "
            f"again at the end of a run; `raynn report {folder}` reads them."
        )
        return found
    _guarded(found, "Predictions, errors and the sizes of the splits", lambda: _predict(found))
    return found


def bytes_of_sources(job: Job) -> int:
    """Of the local files that the data section names; what lies elsewhere counts nothing."""
    total = 0
    settings = located(job.data, Path())
    for source in (settings.train, settings.validation, settings.test):
        for entry in (source,) if isinstance(source, str) else source if isinstance(source, tuple) else ():
            path = Path(entry)
            files = path.rglob("*") if path.is_dir() else [path] if path.exists() else path.parent.glob(path.name)
            total += sum(file.stat().st_size for file in files if file.is_file())
    return total


def _guarded(found: Inspection, what: str, look: Callable[[], None]) -> None:
    """A report says what it cannot show; only defects of our own are not caught."""
    try:
        look()
    except (RaynnError, OSError) as error:
        found.missing.append(f"{what}: {error}".rstrip(".") + ".")


def _generate(found: Inspection) -> None:
    assert found.run is not None
    if found.task == "image_generation":
        labels = [str(label) for label in found.run.preprocessing.input_spec.classes or ()][:MAX_CLASSES]
        count = IMAGES_OF_CLASS * len(labels) or NUM_IMAGES
        images = draw_images(found.run, count, 0, labels or None).cpu().numpy()
        title = f"Drawn by the network, one column a class: {', '.join(labels)}" if labels else "Drawn by the network"
        found.pictures[title] = _sheet(images, len(labels))


def _sheet(images: NDArray[np.uint8], columns: int = 0) -> bytes:
    return png(grid(images, columns, zoom=max(1, min(4, 56 // images.shape[-1]))))


def _predict(found: Inspection) -> None:
    run = found.run
    assert run is not None
    if found.task == "forecasting":
        _forecast(found, run)
        return
    prepared = run.prepared()
    found.rows_of_splits = {name: prepared.encoded.num_rows(split) for name, split in SPLITS.items()}
    found.split = "test" if found.rows_of_splits["test"] else "validation"
    _check_held_out(found)
    shard = run.split_shard(prepared, found.split)
    device = next(run.model.parameters()).device
    for batch, key_B in evaluation_batches(shard, 2, device):
        found.layers = layers_of(run.model, batch, key_B)
        break
    if found.task == "language_modeling":
        found.tokens = _tokens(run, shard)
        _continue_texts(found, run, shard)
        return
    if found.task == "image_generation":
        _real_images(found, shard)
        return
    found.logits_NK = outputs_of(run, shard)
    target_N = _target(shard)
    inputs = run.preprocessing.input_spec
    if inputs.classes is not None:
        labels = tuple(map(str, inputs.classes))
        found.classes = class_findings(found.logits_NK, target_N.astype(np.int64), labels)
        found.class_counts = _class_counts(prepared, len(labels))
        wrong = found.classes.predicted_N != found.classes.actual_N
        order = np.argsort(np.where(wrong, -found.classes.loss_N, 0.0), kind="stable")[: min(NUM_WORST, wrong.sum())]
    else:
        decode = run.preprocessing.decode_target
        actual_N, predicted_N = (
            np.asarray(decode(values).to_numpy(zero_copy_only=False), np.float64)
            for values in (target_N, found.logits_NK[:, 0])
        )
        found.values = ValueFindings(actual_N, predicted_N)
        order = np.argsort(-np.abs(found.values.residual_N), kind="stable")[:NUM_WORST]
    found.worst = _cases(found, prepared, shard, order)


def _check_held_out(found: Inspection) -> None:
    """That the model has not trained on the rows that are to be shown.

    Raises:
        RunError: it has.
    """
    if found.split == "validation" and (found.folder / "model-validated").exists():
        raise RunError(
            "the run was refitted: its model has trained on the validation rows, and there is no test set to show"
        )


def _target(shard: Shard) -> NDArray[Any]:
    target = shard.tensors["target"]
    assert isinstance(target, torch.Tensor)
    return target.cpu().numpy()


def _class_counts(prepared: Prepared, num_classes: int) -> dict[str, list[int]]:
    counts = {}
    for name, split in SPLITS.items():
        counts[name] = [0] * num_classes
        for piece in prepared.encoded.pieces(split, 0, prepared.encoded.num_rows(split), itself):
            target = piece["target"]
            assert isinstance(target, np.ndarray)
            for k, n in enumerate(np.bincount(target.astype(np.int64), minlength=num_classes)):
                counts[name][k] += int(n)
    return counts


def _cases(found: Inspection, prepared: Prepared, shard: Shard, order: NDArray[np.int64]) -> list[Case]:
    """The rows `order` of the split, with their inputs as the source has them."""
    run = found.run
    assert run is not None
    fragments = understand_job(run.job, run.folder).fragments
    rows = [np.flatnonzero(part == SPLITS[found.split]) for part in prepared.splits]
    ends = np.cumsum([len(part) for part in rows])
    images = shard.tensors.get("image")
    cases = []
    for place in order.tolist():
        index = int(np.searchsorted(ends, place, side="right"))
        row = int(rows[index][place - (int(ends[index - 1]) if index else 0)])
        table, unread = read_fragment(fragments[index])
        values = table.slice(row, 1).to_pylist()[0]
        file, number = fragments[index].locate(row, unread)
        actual, predicted, error = _said(found, place)
        picture = png(grid(images[place][None].cpu().numpy(), zoom=4)) if isinstance(images, torch.Tensor) else None
        kinds = {spec.name: spec.kind for spec in run.preprocessing.features}
        shown = [(name, values.get(name)) for name, kind in kinds.items() if kind not in ("image", "sequence")]
        curves = [values[name] for name, kind in kinds.items() if kind == "sequence" and values.get(name)]
        where = f"{Path(file).name} row {number}"
        inputs = tuple((name, _cut(value)) for name, value in shown[:VALUES_SHOWN])
        cases.append(Case(where, actual, predicted, error, inputs, picture, _channels(curves[0]) if curves else ()))
    return cases


def _said(found: Inspection, place: int) -> tuple[str, str, float]:
    if found.classes is not None:
        c = found.classes
        told = f"{c.labels[c.predicted_N[place]]} at {c.confidence_N[place]:.1%}"
        return c.labels[c.actual_N[place]], told, float(c.loss_N[place])
    assert found.values is not None
    v = found.values
    return f"{v.actual_N[place]:.5g}", f"{v.predicted_N[place]:.5g}", float(v.residual_N[place])


def _channels(steps: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
    """Up to three channels of a sequence as written in the source."""
    if not steps or not isinstance(steps[0], list):
        return (tuple(float(x or 0.0) for x in steps),)
    return tuple(tuple(float(x or 0.0) for x in channel) for channel in list(zip(*steps, strict=True))[:3])


def _cut(value: Any, limit: int = 240) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


def _forecast(found: Inspection, run: Run) -> None:
    """Every window of the split, target by target."""
    targets, settings = run.preprocessing.targets, run.job.data
    try:
        tables, found.split = list(run.forecasts_of_split("test")), "test"
    except RunError:
        tables, found.split = list(run.forecasts_of_split("validation")), "validation"
    _check_held_out(found)
    assert run.preprocessing.forecast is not None
    horizon = run.preprocessing.forecast.horizon

    def column(name: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.asarray(t[name].to_pylist(), dtype) for t in tables]).reshape(-1, horizon)

    for spec in targets:
        actual, predicted = (named(what, spec.name, run.preprocessing) for what in ("actual", "prediction"))
        found.forecasts.append(ForecastFindings(spec.name, column(actual, float), column(predicted, float)))
    found.times_NH = column(str(settings.time), str)
    one = np.full(len(found.times_NH), "")
    found.series_N = column(settings.series, str)[:, 0] if settings.series is not None else one
    found.rows_of_splits = {found.split: len(found.times_NH)}


@torch.no_grad()
def _tokens(run: Run, shard: Shard) -> TokenFindings:
    """How surprising each token of some windows is."""
    tokenizer, device = encoding_of(run.preprocessing).tokenizer, next(run.model.parameters()).device
    chosen = torch.from_numpy(spread(shard.num_rows, NUM_WINDOWS))
    run.model.eval()
    excerpts: list[tuple[tuple[str, float | None], ...]] = []
    losses: list[float] = []
    by_token: dict[int, list[float]] = {}
    for batch, key_B in evaluation_batches(shard, 8, device, chosen):
        loss_BT, scored_BT = token_losses(run.model(batch, key_B).float(), batch)
        for ids_T, loss_T, scored_T in zip(batch["tokens"].tolist(), loss_BT.tolist(), scored_BT.tolist(), strict=True):
            read: list[tuple[str, float | None]] = [(tokenizer.decode([ids_T[0]]), None)]
            last = max((t for t, scored in enumerate(scored_T) if scored), default=-1)
            for t in range(last + 1):
                loss = loss_T[t] if scored_T[t] else None
                read.append((tokenizer.decode([ids_T[t + 1]]), loss))
                if loss is not None:
                    losses.append(loss)
                    by_token.setdefault(ids_T[t + 1], []).append(loss)
            excerpts.append(tuple(read))
    often = [(tokenizer.decode([i]), float(np.mean(x)), len(x)) for i, x in by_token.items() if len(x) >= 5]
    hardest = sorted(often, key=lambda entry: -entry[1])[:NUM_WORST]
    mean = [np.mean([loss for _, loss in excerpt if loss is not None] or [0.0]) for excerpt in excerpts]
    order = np.argsort(mean)
    shown = [excerpts[i] for i in dict.fromkeys([order[-1], order[len(order) // 2], order[0]])]
    return TokenFindings(tuple(shown), np.array(losses), tuple(hardest))


def _continue_texts(found: Inspection, run: Run, shard: Shard) -> None:
    """Continues the beginnings of texts that were held out."""
    tokenizer, device = encoding_of(run.preprocessing).tokenizer, next(run.model.parameters()).device
    for batch, _ in evaluation_batches(shard, 1, device, torch.from_numpy(spread(shard.num_rows, NUM_TEXTS))):
        prompt = tokenizer.decode(batch["tokens"][0, : int(batch["length"][0])].tolist())[:PROMPT_CHARACTERS]
        if not tokenizer.unknown(prompt):
            found.texts += write_texts(run, 1, len(found.texts), prompt, TEXT_TOKENS, temperature=0.8)


def _real_images(found: Inspection, shard: Shard) -> None:
    """Held out ones, to be compared with those drawn; by class where there are classes."""
    images, target = shard.tensors["image"], shard.tensors.get("target")
    assert isinstance(images, torch.Tensor)
    if not isinstance(target, torch.Tensor):
        found.pictures[f"Real images ({found.split})"] = _sheet(images[:NUM_IMAGES].cpu().numpy())
        return
    places = [(target == k).nonzero()[:IMAGES_OF_CLASS, 0] for k in range(min(MAX_CLASSES, int(target.max()) + 1))]
    fewest = min(len(place) for place in places)
    if fewest:
        order = torch.stack([place[:fewest] for place in places], dim=1).flatten()
        found.pictures[f"Real images ({found.split})"] = _sheet(images[order].cpu().numpy(), len(places))
