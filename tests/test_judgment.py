"""`raynn evaluate RUN --judge CNN_RUN`: a generator's images, judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raynn.errors import RunError
from raynn.job import Job
from raynn.judgment import judge
from raynn.trainer import train


@pytest.fixture(scope="module")
def painter(garden: Path) -> Path:
    """A run that draws cats and dogs, badly, and holds half of the real ones out."""
    job = {
        "name": "judged",
        "data": {"train": str(garden / "pets"), "target": "label", "test": 0.5},
        "network": {"kind": "image_generator", "channels": [8, 8], "steps": 2},
        "optimization": {"global_batch_size": 8, "max_epochs": 1},
        "storage": str(garden / "runs"),
    }
    return train(Job.from_dict(job))


def test_samples_stand_beside_real_images(painter: Path, image_classifier: Path) -> None:
    found = judge(painter, image_classifier)
    assert found["frechet_distance"] > 10 * found["frechet_distance_real"] > 0, "an hour of training is missing"
    assert 0 <= found["class_agreement"] <= 1
    saved = json.loads((painter / "quality.json").read_text())
    assert saved["samples"] == 10, "as many as half of the held-out images"
    assert {name: saved[name] for name in found} == found
    assert (painter / "nearest.png").read_bytes().startswith(b"\x89PNG")
    assert judge(painter, image_classifier) == found, "a seed gives the same"
    assert judge(painter, image_classifier, seed=1) != found


def test_only_images_are_judged(image_classifier: Path, classifier: Path) -> None:
    with pytest.raises(RunError, match=r"--judge is for image generators, and .* is a run of task classification"):
        judge(classifier, image_classifier)
