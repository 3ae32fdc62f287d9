"""The tables of docs/studies.md, from the folders of finished studies.

    .venv/bin/python benchmarks/studies.py runs/adult-study runs/cifar10-study ... > docs/studies.md

Each is what `raynn study jobs/NAME_study.yaml` left; the study's own report says more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

HEAD = """# What regularization is worth

Each table is a study: `raynn study JOB` trains the job without any regularizer, with all of its own, with each of them
alone, and with each of them left out, over the same seeds (which also draw the validation rows). *Gain* is the paired
difference to none on the test set, *gap* is training minus test (of a loss: test minus training): what does not
generalize. Intervals are Student's t at 95 % over seeds. Where an interval is clear of zero it says **helps** or
**hurts**. The strengths are those of earlier searches on validation rows, or common ones. The networks of the two
image studies took the place of one too small to overfit, on which a first study of Fashion-MNIST showed every knob to
hurt.

Measured on 2 cores (AMD EPYC, AVX-512), no GPU, one thread a trial, 2026-11-24, on a machine busy with other work,
which changes no figure here; Fashion-MNIST on 2 cores of an Intel Xeon with AVX-512 and AMX, 2026-11-28. An earlier
study of it, with dropout .4, weight decay .05 and mirrored images, was not clear of zero (gain .0037 [-.0048, .0123],
3 seeds); this one has what a search on validation rows found ([its job](../jobs/fashion_mnist_search.yaml)), but for
the learning rate, which no arm's is tuned to.
"""
WORDS = {"better": "**helps**", "worse": "**hurts**", "unclear": ""}


def table(folder: Path) -> str:
    """One study as Markdown."""
    study = json.loads((folder / "study.json").read_text())
    job = yaml.safe_load((folder / "job.yaml").read_text())
    result = json.loads((folder / "result.json").read_text())
    name = job["name"].replace("-", "_").replace("fashion_study", "fashion_mnist_study")
    lines = [
        f"## {name}",
        "",
        f"[jobs/{name}.yaml](../jobs/{name}.yaml): {job['network']['kind']}, {study['seeds']} seeds, at most "
        f"{job['optimization']['max_epochs']} epochs; test {study['quantity']}; {sum(result['trials'].values())} "
        f"trials in {result['seconds'] / 60:.0f} minutes.",
        "",
        "| | test | gain | | gap |",
        "|---|---|---|---|---|",
    ]
    for arm in study["arms"]:
        gain, word = "", ""
        if arm["gain"] is not None:
            gain, word = _interval(arm["gain"], "+"), WORDS[arm["gain"]["verdict"]]
        lines.append(f"| {arm['arm']} | {_interval(arm['test'])} | {gain} | {word} | {_interval(arm['gap'], '+')} |")
    return "\n".join(lines) + "\n"


def _interval(estimate: dict[str, Any], sign: str = "") -> str:
    mean, low, high = (estimate[key] for key in ("mean", "low", "high"))
    return f"{mean:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def main() -> None:
    """Prints the page."""
    print(HEAD)
    print("\n".join(table(Path(folder)) for folder in sys.argv[1:]), end="")


if __name__ == "__main__":
    main()
