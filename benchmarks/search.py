"""What a search costs beside the training it does: raynn tune, and the recipe that Ray documents, on the same trials.

    .venv/bin/python benchmarks/search.py DATA [--trials 16] [--recipe-trials 4]

DATA is a folder with adult_train.parquet. Both train an MLP of three layers of 256 on Adult for 5 epochs a trial, two
trials at a time. The recipe is that of Ray's user guide ("Hyperparameter Tuning with Ray Tune", Ray Train V2): a
TorchTrainer of one worker inside each trial, TuneReportCallback, Ray Data. Printed are seconds a trial, and for raynn
what a trial costs from the second of an actor on, and the share that is not training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

EPOCHS, BATCH, CONCURRENT = 5, 256, 2
TARGET = "income_over_50k"


def raynn_search(data: Path, trials: int, folder: Path) -> dict[str, float]:
    """Seconds of `raynn tune`, from its call to its end, and what its journal says of them."""
    from raynn.cluster import cluster
    from raynn.job import Job
    from raynn.tuner import tune

    job = {
        "name": "adult",
        "data": {"train": str(data / "adult_train.parquet"), "validation": 0.1, "target": TARGET},
        "network": {"kind": "feedforward", "hidden": [256, 256, 256]},
        "optimization": {"max_epochs": EPOCHS, "global_batch_size": BATCH},
        "early_stopping": {"rule": "none"},
        "resources": {"cpus_per_worker": 1},
        "search": {
            "trials": trials,
            "algorithm": "random",
            "scheduler": "none",
            "concurrent_trials": CONCURRENT,
            "metric": "val/accuracy",
            "space": {
                "regularization.dropout": {"uniform": [0.0, 0.5]},
                "optimization.learning_rate": {"loguniform": [1e-4, 1e-2]},
            },
        },
        "storage": str(folder),
    }
    with cluster(CONCURRENT):
        start = time.perf_counter()
        search = tune(Job.from_dict(job))
        total = time.perf_counter() - start
    return {"total": total, **overheads(search / "search.jsonl")}


def overheads(journal: Path) -> dict[str, float]:
    """Of a journal: seconds of training, seconds from the first step of all to the last event, and from a trial's begin
    to its first epoch's end, the epoch left out, for trials that took over an actor.
    """
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    begun: dict[int, float] = {}
    waits, epoch_s = [], []
    for event in events:
        if event["event"] == "status" and event["status"] == "running":
            begun[event["trial"]] = event["at"]
        if event["event"] == "epoch":
            epoch_s.append(event["record"]["seconds"])
            if event["record"]["epoch"] == 1:
                waits.append((event["trial"], event["at"] - begun[event["trial"]] - event["record"]["seconds"]))
    later = [wait for trial, wait in waits if trial >= CONCURRENT]
    first = min(e["at"] - e["record"]["seconds"] for e in events if e["event"] == "epoch")
    work = events[-1]["at"] - first
    return {"training": sum(epoch_s), "work": work, "begin_to_first_epoch": float(np.median(later))}


def matrix(data: Path) -> pd.DataFrame:
    """Adult as numbers: standardized, one-hot, missing as zero."""
    table = pd.read_parquet(data / "adult_train.parquet")
    y = pd.Categorical(table.pop(TARGET)).codes.astype(np.int64)
    numbers = table.select_dtypes("number")
    numbers = ((numbers - numbers.mean()) / numbers.std()).fillna(0.0)
    rest = pd.get_dummies(table.select_dtypes(exclude="number"), dummy_na=True)
    x = pd.concat([numbers, rest], axis=1).to_numpy(np.float32)
    return pd.DataFrame({"x": list(x), "y": y})


def train_loop(config: dict[str, Any]) -> None:
    """One trial of the recipe, in a Ray Train worker."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model
    from torch import nn

    sizes = [config["width"], 256, 256, 256]
    layers = [
        m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(config["dropout"]))
    ]
    model = prepare_model(nn.Sequential(*layers, nn.Linear(256, 2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    train, validation = ray.train.get_dataset_shard("train"), ray.train.get_dataset_shard("validation")
    for _ in range(EPOCHS):
        model.train()
        for batch in train.iter_torch_batches(batch_size=BATCH):
            loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        right = rows = 0
        with torch.no_grad():
            for batch in validation.iter_torch_batches(batch_size=4096):
                right += int((model(batch["x"]).argmax(1) == batch["y"]).sum())
                rows += len(batch["y"])
        ray.train.report({"accuracy": right / rows})


def recipe_search(data: Path, trials: int, folder: Path) -> float:
    """Seconds of the documented recipe."""
    import ray
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    ray.init(num_cpus=2 * CONCURRENT, log_to_driver=False, logging_level="ERROR", include_dashboard=True)
    table = matrix(data)
    cut = len(table) // 10
    parts = {"train": ray.data.from_pandas(table[cut:]), "validation": ray.data.from_pandas(table[:cut])}
    width = len(table["x"][0])

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            train_loop,
            train_loop_config=config | {"width": width},
            scaling_config=ScalingConfig(num_workers=1),
            datasets=parts,
            run_config=RunConfig(
                name=tune.get_context().get_trial_id(), storage_path=str(folder), callbacks=[TuneReportCallback()]
            ),
        ).fit()

    start = time.perf_counter()
    tune.Tuner(
        trial,
        param_space={"lr": tune.loguniform(1e-4, 1e-2), "dropout": tune.uniform(0.0, 0.5)},
        tune_config=tune.TuneConfig(
            num_samples=trials, max_concurrent_trials=CONCURRENT, metric="accuracy", mode="max"
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()
    seconds = time.perf_counter() - start
    ray.shutdown()
    return seconds


def main() -> None:
    """Prints a table, and the same as YAML."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--recipe-trials", type=int, default=4, help="0: raynn alone")
    options = parser.parse_args()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    data = options.data.resolve()
    folder = Path(tempfile.mkdtemp())
    try:
        ours = raynn_search(data, options.trials, folder / "raynn")
        found: dict[str, float] = {
            "raynn, seconds in all (Ray started before)": ours["total"],
            "raynn, seconds a trial": ours["total"] / options.trials,
            "raynn, seconds from a trial's begin to its first epoch's end, the epoch left out (median)": ours[
                "begin_to_first_epoch"
            ],
            "raynn, from the first step on / (training seconds / concurrency)": ours["work"]
            / (ours["training"] / CONCURRENT),
        }
        if options.recipe_trials:
            recipe = recipe_search(data, options.recipe_trials, folder / "recipe")
            found["recipe, seconds a trial"] = recipe / options.recipe_trials
            found["recipe / raynn, a trial"] = recipe / options.recipe_trials / (ours["total"] / options.trials)
        print(yaml.dump({name: round(value, 3) for name, value in found.items()}, sort_keys=False, width=200))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
