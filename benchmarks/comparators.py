"""Those that raynn is compared with, each written as its documentation shows it. One training a call, in a process of
its own; prints one JSON object: examples_per_second after the first epoch, seconds to the first step, parameters.

    python benchmarks/comparators.py plain|loader|ddp|lightning|ludwig|ray|ray_materialized WORK DATA
        [--threads 1] [--workers 1] [--device cuda]

On a GPU, as their documentation has it: the plain loop's rows in its memory, DataLoader's in pinned memory, DDP over
NCCL. Ray's recipe is for CPUs here, and Ludwig decides for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

STARTED_AT = float(os.environ.get("BENCH_STARTED_AT") or time.time())  # Unix time of the process's start, s

import torch  # noqa: E402 - the clock starts before
from torch import Tensor, nn  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from works import WORKS, Arrays, Batch, Work, embedding_width, loss_of  # noqa: E402


class Watch:
    """Notes the end of the first step, and of each epoch's training."""

    def __init__(self, rows: int) -> None:
        self.rows, self.first_step_at = rows, 0.0
        self.epoch_s: list[float] = []

    def step(self) -> None:
        """A step has ended."""
        self.first_step_at = self.first_step_at or time.time()

    def told(self, model: nn.Module) -> dict[str, float]:
        """What a comparator prints."""
        steady = self.epoch_s[1:]
        return {
            "examples_per_second": len(steady) * self.rows / sum(steady),
            "first_step_s": self.first_step_at - STARTED_AT,
            "parameters": sum(p.numel() for p in model.parameters()),
        }


def tensors_of(arrays: Arrays, device: torch.device = torch.device("cpu")) -> Batch:
    """The rows as tensors."""
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def trained(work: Work, arrays: Arrays, model: nn.Module, batches: Any, rows: int | None = None) -> Watch:
    """The loop that people write: `batches(epoch)` yields them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr)
    watch = Watch(rows or len(arrays["target"]))
    for epoch in range(work.epochs):
        watch.epoch_s.append(an_epoch(model, optimizer, batches(epoch), watch.step))
    return watch


def an_epoch(model: nn.Module, optimizer: Any, batches: Iterable[Batch], stepped: Callable[[], None]) -> float:
    """Seconds of one."""
    started, total = time.perf_counter(), torch.zeros((), device=next(model.parameters()).device)
    for batch in batches:
        loss = loss_of(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
        stepped()
    float(total)
    return time.perf_counter() - started


def shuffled(rows: Batch, num_rows: int) -> Iterator[Batch]:
    """All rows in a random order, so many at a time."""
    for rows_B in torch.randperm(len(rows["target"]), device=rows["target"].device).split(num_rows):
        yield {name: x[rows_B] for name, x in rows.items()}


def plain(work: Work, arrays: Arrays, options: argparse.Namespace) -> dict[str, float]:
    """All rows in memory, shuffled and gathered."""
    rows, model = tensors_of(arrays, options.device), work.build(arrays).to(options.device)
    return trained(work, arrays, model, lambda epoch: shuffled(rows, work.rows)).told(model)


class Rows(torch.utils.data.Dataset[Batch]):
    """One row at a time, as DataLoader asks for them."""

    def __init__(self, arrays: Arrays) -> None:
        self.rows = tensors_of(arrays)

    def __len__(self) -> int:
        return len(self.rows["target"])

    def __getitem__(self, row: int) -> Batch:
        return {name: x[row] for name, x in self.rows.items()}


def loader(work: Work, arrays: Arrays, options: argparse.Namespace) -> dict[str, float]:
    """torch.utils.data.DataLoader over a map-style dataset, in the process itself."""
    gpu = options.device.type == "cuda"
    data = torch.utils.data.DataLoader(Rows(arrays), batch_size=work.rows, shuffle=True, pin_memory=gpu)
    model = work.build(arrays).to(options.device)

    def batches(epoch: int) -> Iterator[Batch]:
        for batch in data:
            yield {name: x.to(options.device, non_blocking=True) for name, x in batch.items()}

    return trained(work, arrays, model, batches if gpu else lambda epoch: data).told(model)


def ddp(work: Work, arrays: Arrays, options: argparse.Namespace) -> dict[str, float]:
    """What torchrun starts: DistributedDataParallel, DistributedSampler, gloo."""
    gpu = options.device.type == "cuda"
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    device = torch.device("cuda", rank) if gpu else options.device
    rows = tensors_of(arrays, device)
    sampler: Any = torch.utils.data.DistributedSampler(Rows(arrays), drop_last=True)
    model = nn.parallel.DistributedDataParallel(work.build(arrays).to(device))

    def batches(epoch: int) -> Iterator[Batch]:
        sampler.set_epoch(epoch)
        for rows_B in torch.tensor(list(sampler), device=device).split(work.rows // size):
            yield {name: x[rows_B] for name, x in rows.items()}

    told = trained(work, arrays, model, batches).told(model)
    torch.distributed.barrier()  # gloo aborts a process whose peer has gone
    torch.distributed.destroy_process_group()
    return told if rank == 0 else {}


def lightning(work: Work, arrays: Arrays, options: argparse.Namespace) -> dict[str, float]:
    """LightningModule, Trainer and DataLoader; what Lightning logs and keeps by default is off."""
    import lightning as L

    watch = Watch(len(arrays["target"]))

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = work.build(arrays)

        def training_step(self, batch: Batch, number: int) -> Tensor:
            return loss_of(self.model(batch), batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=work.lr)

        def on_train_batch_end(self, *args: Any) -> None:
            watch.step()

        def on_train_epoch_start(self) -> None:
            self.started = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            watch.epoch_s.append(time.perf_counter() - self.started)

    module = Module()
    data = torch.utils.data.DataLoader(Rows(arrays), batch_size=work.rows, shuffle=True)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    L.Trainer(max_epochs=work.epochs, accelerator=options.device.type, enable_model_summary=False, **quiet).fit(
        module, data
    )
    return watch.told(module)


def ludwig(work: Work, arrays: Arrays, options: argparse.Namespace) -> dict[str, float]:
    """LudwigModel on a table of the same rows, which it encodes itself; only for tables of numbers and categories.
    No evaluation, and of what Ludwig saves by default nothing is saved.
    """
    import pandas as pd
    from ludwig.api import LudwigModel
    from ludwig.callbacks import Callback

    numeric_NF, categorical_NF = arrays["numeric"], arrays["categorical"]
    table = pd.DataFrame(numeric_NF, columns=[f"number_{i}" for i in range(numeric_NF.shape[1])])
    inputs: list[dict[str, Any]] = [{"name": name, "type": "number"} for name in table]
    for i, size in enumerate(categorical_NF.max(0) + 1):
        table[f"category_{i}"] = categorical_NF[:, i].astype(str)
        encoder = {"type": "dense", "embedding_size": embedding_width(int(size))}
        inputs.append({"name": f"category_{i}", "type": "category", "encoder": encoder})
    table["target"] = arrays["target"].astype(str)
    layers = {"num_fc_layers": 3, "output_size": 256, "activation": "relu"}
    trainer = {"epochs": work.epochs, "batch_size": work.rows, "learning_rate": work.lr, "early_stop": -1}
    config = {
        "input_features": inputs,
        "output_features": [{"name": "target", "type": "category"}],
        "combiner": {"type": "concat", **layers},
        "trainer": {**trainer, "optimizer": {"type": "adamw"}, "skip_all_evaluation": True},
        "preprocessing": {"split": {"type": "random", "probabilities": [1.0, 0.0, 0.0]}},
    }
    watch = Watch(len(table))

    class Clock(Callback):  # type: ignore[misc]
        def on_epoch_start(self, *args: Any) -> None:
            self.started = time.perf_counter()

        def on_batch_end(self, *args: Any, **more: Any) -> None:
            watch.step()

        def on_epoch_end(self, *args: Any) -> None:
            watch.epoch_s.append(time.perf_counter() - self.started)

    model = LudwigModel(config, backend="local", callbacks=[Clock()])
    nothing = ("training_description", "training_statistics", "model", "progress", "log", "processed_input")
    skipped = {f"skip_save_{name}": True for name in nothing}
    model.train(training_set=table, output_directory=str(options.storage), **skipped)
    return watch.told(model.model)


def ray_materialized(work: Work, arrays: Arrays, options: argparse.Namespace) -> dict[str, float]:
    """The same over a data set that is kept in the object store."""
    return ray(work, arrays, options, materialized=True)


def ray(work: Work, arrays: Arrays, options: argparse.Namespace, materialized: bool = False) -> dict[str, float]:
    """Ray's user guide: TorchTrainer over a data set that is read anew each epoch, iter_torch_batches with a local
    shuffle, a report an epoch. The rows are prepared before, which the guide does as they are read.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray as ray_
    from ray.data.extensions import ArrowTensorArray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray_.init(num_cpus=options.workers + 1, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    names = list(arrays)
    table = {name: ArrowTensorArray.from_numpy(x) if x.ndim > 1 else pa.array(x) for name, x in arrays.items()}
    options.storage.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), options.storage / "rows.parquet")
    dataset = ray_.data.read_parquet(str(options.storage / "rows.parquet"))
    dataset = dataset.materialize() if materialized else dataset
    small = {name: x[:64] for name, x in arrays.items()} | {
        name: np.concatenate([x[:64], x.max(0, keepdims=True)])
        for name, x in arrays.items()
        if name in ("categorical",)
    }

    def train_loop(config: dict[str, Any]) -> dict[str, float]:
        import ray.train as rt
        from ray.train.torch import prepare_model

        torch.set_num_threads(options.threads)
        model = prepare_model(work.build(config["arrays"]))
        shard = rt.get_dataset_shard("train")

        def batches(epoch: int) -> Iterator[Batch]:
            yield from shard.iter_torch_batches(
                batch_size=work.rows // options.workers, local_shuffle_buffer_size=16 * work.rows
            )

        watch = trained(work, arrays, model, batches, rows=config["rows"])
        rt.report(watch.told(model))
        return watch.told(model)

    result = TorchTrainer(
        train_loop,
        train_loop_config={"arrays": small, "rows": len(arrays[names[0]])},
        scaling_config=ScalingConfig(num_workers=options.workers),
        datasets={"train": dataset},
        run_config=RunConfig(storage_path=str(options.storage)),
    ).fit()
    return dict(result.return_value)


def main() -> None:
    """Trains once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "comparator", choices=["plain", "loader", "ddp", "lightning", "ludwig", "ray", "ray_materialized"]
    )
    parser.add_argument("work", choices=list(WORKS))
    parser.add_argument("data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--storage", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    work = WORKS[options.work]
    if told := globals()[options.comparator](work, work.arrays(options.data), options):
        print(json.dumps(told))


if __name__ == "__main__":
    main()
