"""What a search takes, from the start of its process to the end: raynn tune and those that people use instead, on the
same settings of the same training, in turn.

    .venv/bin/python benchmarks/search.py DATA [--rounds 3] [--only NAME ...] [--out docs/benchmarks.md]

DATA is a folder with adult_train.parquet. An MLP of three layers of 256 on Adult, batches of 256, at most five epochs,
4 learning rates x 4 rates of dropout, one thread a trial, two trials at a time but for the plain loop. Each is written
as its documentation shows it: Optuna in two processes over one journal with its own pruner; a function and a class for
Tune under ASHA, the latter's actors reused; and Ray Train's guide to Tune, a TorchTrainer of one worker within each
trial, Ray Data, no scheduler, of which four trials are run, as each takes long.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

EPOCHS, CONCURRENT = 5, 2
RATES, DROPOUTS = (3e-4, 1e-3, 3e-3, 1e-2), (0.0, 0.15, 0.3, 0.45)
SETTINGS = [{"lr": rate, "dropout": dropout} for rate, dropout in itertools.product(RATES, DROPOUTS)]
RECIPE_TRIALS = 4
QUIET = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}


@dataclass
class Told:
    """What a contestant says of itself: trials and epochs trained, the best accuracy on validation rows."""

    trials: int
    epochs: int
    accuracy: float


class Trial:
    """The plain loop, an epoch at a time: AdamW, rows in memory, the validation rows scored after each epoch."""

    def __init__(self, rows: Any, held_out: Any, lr: float, dropout: float) -> None:
        import torch
        from torch import nn
        from works import WORKS

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.rows, self.held_out, self.batch = rows, held_out, WORKS["mlp"].rows
        self.model = WORKS["mlp"].build({name: x.numpy() for name, x in rows.items()})
        layers: Any = self.model.layers
        self.model.layers = nn.Sequential(
            *[m for layer in layers for m in ((layer, nn.Dropout(dropout)) if isinstance(layer, nn.ReLU) else (layer,))]
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)

    def epoch(self) -> float:
        """Trains for one; the accuracy after it."""
        import torch
        from comparators import an_epoch, shuffled

        self.model.train()
        an_epoch(self.model, self.optimizer, shuffled(self.rows, self.batch), lambda: None)
        self.model.eval()
        with torch.no_grad():
            right = self.model(self.held_out).argmax(1) == self.held_out["target"]
        return float(right.float().mean())


def adult(data: Path) -> tuple[Any, Any]:
    """Training and validation rows as tensors, as many as raynn's."""
    import numpy as np
    from comparators import tensors_of
    from works import adult_rows, held_in

    arrays = adult_rows(data)
    rows = held_in(len(arrays["target"]))
    rest = np.setdiff1d(np.arange(len(arrays["target"])), rows)
    return tuple(tensors_of({name: x[chosen] for name, x in arrays.items()}) for chosen in (rows, rest))


def raynn(data: Path, folder: Path, scheduler: str = "asha") -> Told:
    """`raynn tune`, as a user types it."""
    job = {
        "name": "adult",
        "data": {"train": str(data / "adult_train.parquet"), "validation": 0.1, "target": "income_over_50k"},
        "network": {"kind": "feedforward", "hidden": [256, 256, 256]},
        "regularization": {"weight_decay": 0.01},
        "optimization": {"max_epochs": EPOCHS, "global_batch_size": 256, "schedule": "constant"},
        "early_stopping": {"rule": "none"},
        "resources": {"cpus_per_worker": 1},
        "report": False,
        "search": {
            "trials": len(SETTINGS),
            "algorithm": "grid",
            "first": "none",
            "scheduler": scheduler,
            "concurrent_trials": CONCURRENT,
            "metric": "val/accuracy",
            "space": {
                "regularization.dropout": {"choice": list(DROPOUTS)},
                "optimization.learning_rate": {"choice": list(RATES)},
            },
        },
        "storage": str(folder),
    }
    path = folder / "job.yaml"
    path.write_text(yaml.dump(job))
    subprocess.run([sys.executable, "-m", "raynn", "tune", str(path), "--quiet"], check=True, stdout=sys.stderr)
    events = [json.loads(line) for line in (folder / "adult" / "search.jsonl").read_text().splitlines()]
    records = [event["record"] for event in events if event["event"] == "epoch"]
    return Told(len(SETTINGS), len(records), max(record["val/accuracy"] for record in records))


def raynn_whole(data: Path, folder: Path) -> Told:
    """Every trial to its end."""
    return raynn(data, folder, "none")


def one_after_the_other(data: Path, folder: Path) -> Told:
    """A loop over the settings."""
    rows, held_out = adult(data)
    best = 0.0
    for settings in SETTINGS:
        trial = Trial(rows, held_out, **settings)
        best = max(best, *[trial.epoch() for _ in range(EPOCHS)])
    return Told(len(SETTINGS), len(SETTINGS) * EPOCHS, best)


def optuna_process(data: Path, folder: Path) -> None:
    """One of the processes that share a study."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows, held_out = adult(data)

    def objective(trial: Any) -> float:
        lr = trial.suggest_categorical("lr", RATES)
        training = Trial(rows, held_out, lr, trial.suggest_categorical("dropout", DROPOUTS))
        for epoch in range(EPOCHS):
            accuracy = training.epoch()
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    study = optuna.load_study(study_name="adult", storage=_journal(folder))
    study.optimize(objective, n_trials=len(SETTINGS) // CONCURRENT)


def _journal(folder: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(folder / "optuna.log")))


def optuna_in_two_processes(data: Path, folder: Path) -> Told:
    """One study in a file, its trials queued; its pruner is the median's, as by default."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name="adult", storage=_journal(folder), direction="maximize")
    for settings in SETTINGS:
        study.enqueue_trial(settings)
    command = [sys.executable, __file__, str(data), "--as", "optuna_process", "--folder", str(folder)]
    processes = [subprocess.Popen(command) for _ in range(CONCURRENT)]
    assert not any(process.wait() for process in processes)
    trials = study.get_trials()
    values = [trial.intermediate_values for trial in trials]
    return Told(len(trials), sum(map(len, values)), max(max(curve.values()) for curve in values))


def _ray() -> None:
    import ray

    ray.init(num_cpus=CONCURRENT, **QUIET)


def _asha() -> Any:
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=3)


def _tuned(trainable: Any, folder: Path, reuse: bool) -> Told:
    """Tune over the grid."""
    from ray import tune

    space = {"lr": tune.grid_search(list(RATES)), "dropout": tune.grid_search(list(DROPOUTS))}
    config = tune.TuneConfig(
        metric="accuracy", mode="max", scheduler=_asha(), max_concurrent_trials=CONCURRENT, reuse_actors=reuse
    )
    run_config = tune.RunConfig(storage_path=str(folder), verbose=0)
    results = tune.Tuner(trainable, param_space=space, tune_config=config, run_config=run_config).fit()
    assert not results.errors
    epochs = sum(result.metrics["training_iteration"] for result in results)
    best = max(result.metrics_dataframe["accuracy"].max() for result in results)
    return Told(len(results), int(epochs), float(best))


def tune_function(data: Path, folder: Path) -> Told:
    """A function trainable, the rows in Ray's object store."""
    from ray import tune

    _ray()

    def train(config: dict[str, float], rows: Any, held_out: Any) -> None:
        sys.path.insert(0, str(HERE))
        trial = Trial(rows, held_out, config["lr"], config["dropout"])
        for _ in range(EPOCHS):
            tune.report({"accuracy": trial.epoch()})

    rows, held_out = adult(data)
    return _tuned(tune.with_parameters(train, rows=rows, held_out=held_out), folder, reuse=False)


def tune_reused_actors(data: Path, folder: Path) -> Told:
    """A class trainable whose actors take one trial after another."""
    from ray import tune

    _ray()

    class Trainable(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, float], rows: Any, held_out: Any) -> None:
            sys.path.insert(0, str(HERE))
            self.data = rows, held_out
            self.begin(config)

        def begin(self, config: dict[str, float]) -> None:
            self.trial = Trial(*self.data, config["lr"], config["dropout"])

        def step(self) -> dict[str, Any]:
            accuracy = self.trial.epoch()
            return {"accuracy": accuracy, "done": self.iteration + 1 >= EPOCHS}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            import torch

            torch.save(self.trial.model.state_dict(), Path(checkpoint_dir) / "model.pt")

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

        def reset_config(self, config: dict[str, float]) -> bool:
            self.begin(config)
            return True

    rows, held_out = adult(data)
    return _tuned(tune.with_parameters(Trainable, rows=rows, held_out=held_out), folder, reuse=True)


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
        for batch in train.iter_torch_batches(batch_size=256):
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


def matrix(data: Path) -> Any:
    """Adult as numbers: standardized, one-hot, missing as zero."""
    import numpy as np
    import pandas as pd

    table = pd.read_parquet(data / "adult_train.parquet")
    y = pd.Categorical(table.pop("income_over_50k")).codes.astype(np.int64)
    numbers = table.select_dtypes("number")
    numbers = ((numbers - numbers.mean()) / numbers.std()).fillna(0.0)
    rest = pd.get_dummies(table.select_dtypes(exclude="number"), dummy_na=True)
    x = pd.concat([numbers, rest], axis=1).to_numpy(np.float32)
    return pd.DataFrame({"x": list(x), "y": y})


def tune_and_torch_trainer(data: Path, folder: Path) -> Told:
    """Ray's guide, "Hyperparameter Tuning with Ray Tune", Ray Train V2."""
    import ray
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    ray.init(num_cpus=2 * CONCURRENT, **QUIET)
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

    results = tune.Tuner(
        trial,
        param_space={"lr": tune.grid_search(list(RATES)), "dropout": 0.15},
        tune_config=tune.TuneConfig(max_concurrent_trials=CONCURRENT, metric="accuracy", mode="max"),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()
    assert not results.errors
    assert len(results) == RECIPE_TRIALS
    best = max(result.metrics["accuracy"] for result in results)
    return Told(len(results), len(results) * EPOCHS, float(best))


CONTESTANTS = {
    "raynn tune, asha": raynn,
    "raynn tune, no scheduler": raynn_whole,
    "one after the other": one_after_the_other,
    "Optuna in two processes, its pruner": optuna_in_two_processes,
    "Tune, a function, ASHA": tune_function,
    "Tune, a class, actors reused, ASHA": tune_reused_actors,
    f"Tune and TorchTrainer, {RECIPE_TRIALS} trials": tune_and_torch_trainer,
}


def run(name: str, data: Path) -> dict[str, float]:
    """One search in a process of its own."""
    from throughput import told_by

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, str(data), "--as", CONTESTANTS[name].__name__, "--folder", folder]
        env = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAYNN_REPORT": "off"}
        told, seconds = told_by(command, env)
    return {"seconds": seconds, **told}


def rows_of(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """The table, line by line; medians, and the range of the seconds."""
    yield "### Adult, a search of 16 settings, at most 5 epochs, two trials at a time"
    yield ""
    yield "| | start to end, s | range | epochs trained | s an epoch | s a trial | best accuracy |"
    yield "|---|---|---|---|---|---|---|"
    for name, rounds in found.items():
        all_s = [each["seconds"] for each in rounds]
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        yield (
            f"| {name} | {middle['seconds']:.1f} | {min(all_s):.1f} .. {max(all_s):.1f} | {middle['epochs']:.0f} | "
            f"{statistics.median(each['seconds'] / each['epochs'] for each in rounds):.2f} | "
            f"{middle['seconds'] / middle['trials']:.2f} | {middle['accuracy']:.4f} |"
        )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--out", type=Path, help="a page of the documentation with a place for the table")
    parser.add_argument("--as", dest="contestant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = options.data.resolve()
    if options.contestant:
        told = globals()[options.contestant](data, options.folder)
        print(json.dumps(vars(told)) if told else "")
        return
    from throughput import machine, put_into

    found: dict[str, list[dict[str, float]]] = {}
    for number in range(options.rounds):
        for name in options.only if number % 2 == 0 else reversed(options.only):
            found.setdefault(name, []).append(run(name, data))
            print(f"round {number + 1}: {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    found = {name: found[name] for name in options.only}
    said = f"One thread a trial; {machine()}; {datetime.date.today()}; medians of {options.rounds} rounds, in turn."
    text = "\n".join([*rows_of(found), "", said, ""])
    print(text)
    if options.out:
        put_into(options.out, "search", text)


if __name__ == "__main__":
    main()
