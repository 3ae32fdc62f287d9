"""Images of a generator, judged by a CNN trained on the same data: `raynn evaluate RUN --judge CNN_RUN`.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raynn.drivers import LocalDriver
from raynn.encoded import itself
from raynn.errors import RunError
from raynn.folder import write_json
from raynn.image_quality import image_quality
from raynn.networks.drawing import ImageGenerator
from raynn.pictures import grid, png
from raynn.run import open_run
from raynn.samples import draw_images
from raynn.splits import TEST, TRAIN, VALIDATION
from raynn.tasks import prepare_job, understand_job

ZOOM = 3


def judge(run: str | Path, judge_run: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Draws as many images as half of the held-out ones, of the same classes, and says what a CNN makes of them.

    The held-out images are the job's test set, or else its validation set; the even ones are half A, the odd ones half
    B. Beside each figure of the samples stands the same of half B (`..._real`), which no generator can be asked to
    beat. Writes quality.json, and nearest.png: the samples nearest to a training image above that image.

    Raises:
        RunError: the run generates no images.
        DataError: the judge cannot judge them.
    """
    opened, judging = open_run(run), open_run(judge_run)
    if not isinstance(opened.model, ImageGenerator):
        raise RunError(f"--judge is for image generators, and {run} is a run of task {opened.job.task}: leave it out")
    prepared = prepare_job(opened.job, understand_job(opened.job, opened.folder), LocalDriver(), opened.preprocessing)
    encoded = prepared.encoded

    def split(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        pieces = list(encoded.pieces(number, 0, encoded.num_rows(number), itself))
        images = np.concatenate([np.asarray(piece["image"]) for piece in pieces])
        targets = [np.asarray(piece["target"]) for piece in pieces if "target" in piece]
        return images, np.concatenate(targets) if targets else None

    held_out_NCHW, class_N = split(TEST if encoded.num_rows(TEST) else VALIDATION)
    training_NCHW, _ = split(TRAIN)
    half_a_NCHW, half_b_NCHW = held_out_NCHW[::2], held_out_NCHW[1::2]
    asked = None
    if class_N is not None:
        asked = opened.preprocessing.decode_target(class_N[1::2]).to_pylist()
    labels = None if asked is None else [str(label) for label in asked]
    samples_NCHW = draw_images(opened, len(half_b_NCHW), seed, labels).cpu().numpy()
    found = image_quality(judging, samples_NCHW, half_a_NCHW, half_b_NCHW, training_NCHW, asked)
    described = {"judge": str(judge_run), "samples": len(samples_NCHW), "seed": seed}
    write_json(opened.folder / "quality.json", described | found)
    pairs = found["nearest_features"]
    nearest = [samples_NCHW[pair["sample"]] for pair in pairs] + [training_NCHW[pair["training"]] for pair in pairs]
    (opened.folder / "nearest.png").write_bytes(png(grid(np.stack(nearest), columns=len(pairs), zoom=ZOOM)))
    return {name: value for name, value in found.items() if not isinstance(value, list)}
