"""`raynn generate`: texts and images from trained runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raynn.cli import main
from raynn.errors import UserError
from raynn.samples import generate


def test_a_text_goes_on_as_the_training_text_does(writer: Path) -> None:
    (text,) = generate(writer, prompt="34", max_tokens=20, temperature=0)["texts"]
    assert text == "3456789\n0123456789\n012"
    (text,) = generate(writer, prompt="34", max_tokens=20, temperature=0, stop=["9\n", "77"])["texts"]
    assert text == "345678"


def test_the_same_seed_writes_the_same(writer: Path, tmp_path: Path) -> None:
    texts = generate(writer, 3, seed=5, temperature=3.0, max_tokens=30)["texts"]
    assert len(set(texts)) == 3
    assert generate(writer, 2, seed=5, temperature=3.0, max_tokens=30)["texts"] == texts[:2]
    assert generate(writer, 3, seed=6, temperature=3.0, max_tokens=30)["texts"] != texts
    answer = generate(writer, 3, seed=5, temperature=3.0, max_tokens=30, out=tmp_path / "new" / "texts.jsonl")
    assert [json.loads(line)["text"] for line in Path(answer["out"]).read_text().splitlines()] == texts


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_images_by_class(painter: Path, tmp_path: Path) -> None:
    answer = generate(painter, 5, seed=1, out=tmp_path / "five")
    assert len(answer["images"]) == 5
    assert pixels(answer["images"][0]).shape == (8, 8, 3)
    assert pixels(answer["grid"]).shape[1] > 2 * 8
    dogs = generate(painter, 3, seed=1, out=tmp_path / "dogs", classes=["dog"])["images"]
    same = [np.array_equal(pixels(a), pixels(b)) for a, b in zip(dogs, answer["images"][:3], strict=True)]
    assert same == [False, True, False], "classes come in turn, and only the second was a dog"


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown characters": (
        "writer",
        {"prompt": "4€x€"},
        "the prompt holds '€', 'x', which training never saw; leave them out",
    ),
    "empty prompt": ("writer", {"prompt": ""}, "the prompt is empty"),
    "temperature": ("writer", {"temperature": -1.0}, "temperature = -1 must be 0, the likeliest token, or more"),
    "images' option": ("writer", {"guidance": 2.0}, "generates texts, and --guidance is for others: leave it out"),
    "count": ("writer", {"count": 0}, "count = 0 must be at least 1"),
    "unknown class": (
        "painter",
        {"classes": ["dgo"]},
        "no class 'dgo' among the training images. Did you mean 'dog'? Their classes: cat, dog",
    ),
    "texts' option": ("painter", {"prompt": "x"}, "generates images, and --prompt is for others: leave it out"),
    "no generator": ("classifier", {}, "is a run of task classification, which generates nothing; `raynn predict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_generated_is_said(name: str, request: pytest.FixtureRequest) -> None:
    fixture, options, said = REFUSED[name]
    with pytest.raises(UserError) as caught:
        generate(request.getfixturevalue(fixture), **options)
    assert said in str(caught.value)


def test_the_command(writer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["generate", str(writer), "--prompt", "34", "--max-tokens", "3", "--temperature", "0", "--stop", "7"])
    assert (code, capsys.readouterr().out) == (0, "3456\n")
    assert main(["generate", str(writer), "--top-k", "0"]) == 2
    assert capsys.readouterr().err == (
        "raynn generate: top_k = 0 must be at least 1; leave it out to draw from all tokens\n"
    )
