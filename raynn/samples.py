"""New texts and images from a trained generator: `raynn generate`.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raynn.encodings import TextEncoding
from raynn.errors import DataError, RunError, did_you_mean
from raynn.generation import LanguageModel, Sampling, generate_tokens
from raynn.networks.drawing import ImageGenerator
from raynn.pictures import save_pictures
from raynn.run import Run, open_run

TEXT_OPTIONS = ("prompt", "max_tokens", "temperature", "top_k", "top_p", "stop")
IMAGE_OPTIONS = ("classes", "steps", "guidance")
DEFAULT_TOKENS = 500
DEFAULT_IMAGES = 64


def generate(
    run: str | Path,
    count: int | None = None,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    prompt: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> dict[str, Any]:
    """Continues texts, or draws images; the same for a seed.

    Args:
        run: the folder of a run that models language or generates images.
        count: how many; default: 1 text, 64 images.
        seed: another one gives others.
        out: texts: a file, .jsonl for a line each; images: a folder, default `images` in the run folder.
        prompt: what a text begins with; default: a line break.
        max_tokens: of a text, after its prompt; default: 500.
        temperature: below 1 likelier tokens come more often, 0: always the likeliest; default: 1.
        top_k: only the k likeliest tokens.
        top_p: only the likeliest tokens that together have this probability.
        stop: texts that end a text; they are left out.
        classes: labels of the images, in turn; default: all of them.
        steps: of the sampler; default: the job's.
        guidance: how strongly classes are asked for; default: the job's.

    Returns:
        texts: what was written, prompts included; or images: their files, and grid: all in one.

    Raises:
        RunError: the run generates nothing, or not what an option is for.
        DataError: an option that cannot be.
    """
    given = {
        name: value for name, value in locals().items() if name in TEXT_OPTIONS + IMAGE_OPTIONS and value is not None
    }
    opened = open_run(run)
    is_text = isinstance(opened.model, LanguageModel)
    if not is_text and not isinstance(opened.model, ImageGenerator):
        raise RunError(
            f"{run} is a run of task {opened.job.task}, which generates nothing; `raynn predict {run} DATA --out "
            "FILE.parquet` uses it"
        )
    if others := [name for name in given if name not in (TEXT_OPTIONS if is_text else IMAGE_OPTIONS)]:
        what = "texts" if is_text else "images"
        raise RunError(f"{run} generates {what}, and --{others[0].replace('_', '-')} is for others: leave it out")
    if count is not None and count < 1:
        raise DataError(f"count = {count} must be at least 1")
    if is_text:
        texts = write_texts(opened, count or 1, seed, **given)
        if out is not None:
            _save_texts(Path(out), texts)
        return {"run": str(run), "seed": seed, "texts": texts, **({"out": str(out)} if out else {})}
    images = draw_images(opened, count or DEFAULT_IMAGES, seed, **given)
    grid, *files = save_pictures(Path(out) if out else opened.folder / "images", images.cpu().numpy())
    return {"run": str(run), "seed": seed, "grid": str(grid), "images": [str(file) for file in files]}


def write_texts(
    run: Run,
    count: int,
    seed: int,
    prompt: str = "\n",
    max_tokens: int = DEFAULT_TOKENS,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
) -> list[str]:
    """Texts that begin with the prompt, a language model's; arguments as those of `generate`.

    Raises:
        DataError: a prompt with characters or words that training never saw, options outside their range.
    """
    model = run.model
    assert isinstance(model, LanguageModel)
    (encoding,) = run.preprocessing.encodings
    assert isinstance(encoding, TextEncoding)
    tokenizer = encoding.tokenizer
    if unknown := tokenizer.unknown(prompt):
        raise DataError(
            f"the prompt holds {', '.join(map(repr, unknown[:5]))}, which training never saw; leave "
            f"{'it' if len(unknown) == 1 else 'them'} out"
        )
    endings = [tokenizer.encode(text).tolist() for text in stop]
    sampling = Sampling(temperature, top_k, top_p)
    found = generate_tokens(model, tokenizer.encode(prompt).tolist(), count, max_tokens, sampling, seed, endings)
    texts = [tokenizer.decode(tokens) for tokens in found]
    for ending in stop:  # however its tokens were cut
        texts = [text.partition(ending)[0] for text in texts]
    return [prompt + text for text in texts]


def draw_images(
    run: Run,
    count: int,
    seed: int,
    classes: Sequence[str] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> torch.Tensor:
    """Images uint8 [N, C, H, W], a generator's; arguments as those of `generate`.

    Raises:
        DataError: a label that the training images do not have.
        JobError: steps or guidance that this network has not.
    """
    model = run.model
    assert isinstance(model, ImageGenerator)
    index_N = None
    if classes is not None:
        labels = [str(label) for label in run.preprocessing.input_spec.classes or ()]
        if unknown := [label for label in classes if label not in labels]:
            raise DataError(
                f"no class {unknown[0]!r} among the training images.{did_you_mean(unknown[0], labels)} "
                f"Their classes: {', '.join(labels) or 'none, the job names no data.target'}"
            )
        index_N = torch.tensor([labels.index(classes[i % len(classes)]) for i in range(count)])
    return model.generate(count, index_N, seed, steps, guidance)


def _save_texts(out: Path, texts: Sequence[str]) -> None:
    """One line of JSON each in a .jsonl file, else the texts themselves, a line of dashes between them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".jsonl":
        out.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    else:
        out.write_text("\n--------\n".join(texts) + "\n")
