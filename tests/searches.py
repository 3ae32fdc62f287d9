"""Search folders as `raynn tune` leaves them, made up by a formula whose important settings are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SPACE: dict[str, Any] = {
    "optimization.learning_rate": {"loguniform": [1e-4, 1e-1]},
    "regularization.dropout": {"uniform": [0.0, 0.6]},
    "regularization.weight_decay": {"loguniform": [1e-6, 1e-1]},
    "regularization.label_smoothing": {"uniform": [0.0, 0.2]},
    "early_stopping.patience": {"randint": [2, 8]},
    "network.normalization": {"choice": ["none", "batch", "layer"]},
    "network.hidden": {"choice": [[8], [16, 8]]},
}


def write_search(
    folder: Path, num_trials: int, *, max_epochs: int = 20, objectives: bool = False, seed: int = 0
) -> Path:
    """A search for val/accuracy: the learning rate matters most, dropout less, the rest nothing; most are cut."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(num_trials):
        rate, decay = 10 ** random.uniform(-4, -1), 10 ** random.uniform(-6, -1)
        dropout, smoothing = random.uniform(0.0, 0.6), random.uniform(0.0, 0.2)
        settings = {
            "optimization.learning_rate": float(rate),
            "regularization.dropout": float(dropout),
            "regularization.weight_decay": float(decay),
            "regularization.label_smoothing": float(smoothing),
            "early_stopping.patience": int(random.integers(2, 9)),
            "network.normalization": str(random.choice(["none", "batch", "layer"])),
            "network.hidden": [[8], [16, 8]][number % 2],
        }
        top = 0.95 - 0.08 * (math.log10(rate) + 2.3) ** 2 - 0.25 * (dropout - 0.25) ** 2 + random.normal(0, 0.004)
        status = str(random.choice(["finished", "stopped_early", "cut", "failed"], p=[0.2, 0.08, 0.7, 0.02]))
        epochs = {"finished": max_epochs, "cut": int(random.choice([1, 2, 4, 8])), "failed": 1}.get(
            status, max_epochs // 2
        )
        run = f"trials/{number}"
        (folder / run).mkdir(parents=True)
        records = []
        for epoch in range(1, epochs + 1):
            accuracy = top - 0.3 * math.exp(-epoch / 3) + random.normal(0, 0.002)
            loss = 2.0 * (1 - accuracy)
            records.append({"epoch": epoch, "step": 10 * epoch, "train/loss": 0.8 * loss, "val/loss": loss})
            records[-1] |= {"val/accuracy": accuracy, "seconds": 0.1}
        (folder / run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        best = max(records, key=lambda record: record["val/accuracy"])
        metrics = {key: None if status == "failed" else best[key] for key in ("train/loss", "val/loss", "val/accuracy")}
        metrics["val/parameters"] = float(10 ** (3 + 2 * top + random.normal(0, 0.3)))
        rows.append(
            {
                "number": number,
                "status": status,
                "reason": "the training loss stopped being finite" if status == "failed" else f"{status} by rule",
                "origin": "job" if number == 0 else "search",
                "epochs": epochs,
                "best_epoch": best["epoch"],
                "value": metrics["val/accuracy"],
                "seconds": 0.1 * epochs,
                "run": run,
                **settings,
                **metrics,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "trials.parquet")
    told = [row for row in rows if row["value"] is not None]
    best_row = max(told, key=lambda row: row["value"])
    job = {
        "name": folder.name,
        "data": {"train": "digits", "target": "label"},
        "network": {"kind": "cnn", "channels": [8]},
        "search": {"trials": num_trials, "metric": "val/accuracy", "space": SPACE},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    statuses = [row["status"] for row in rows]
    result = {
        "name": folder.name,
        "status": "finished",
        "stop_reason": f"all {num_trials} trials have ended",
        "trials": {status: statuses.count(status) for status in ("finished", "stopped_early", "cut", "failed")},
        "best": {
            "number": best_row["number"],
            "settings": {name: best_row[name] for name in SPACE},
            "metrics": {key: best_row[key] for key in ("train/loss", "val/loss", "val/accuracy")},
            "run": best_row["run"],
        },
        "seconds": 0.08 * sum(row["epochs"] for row in rows),
        "estimate": {
            "seconds_at_start": 0.07 * num_trials * 5,
            "seconds_true": 0.08 * sum(row["epochs"] for row in rows),
        },
        "repeats": [],
    }
    if objectives:
        result["objectives"] = [
            {"metric": "val/accuracy", "direction": "max"},
            {"metric": "val/parameters", "direction": "min"},
        ]
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return folder
