"""A small table of walks, sequences of different lengths: where a walk ends up is told by the sum of its steps."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def walks(num_rows: int = 160, num_channels: int = 2, seed: int = 0) -> pa.Table:
    """Walks of 3 to 9 `steps`, list<list<double>> or, of one channel, list<double>; `weather` says nothing; `place` is
    east or west and `distance` [km] how far east, by the first channel's sum.
    """
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([[3], rng.integers(3, 10, num_rows - 1)])
    steps = [rng.normal(size=(length, num_channels)).round(3) + 2 for length in lengths]
    distance = np.array([walk[:, 0].sum() - 2 * len(walk) for walk in steps])
    return pa.table(
        {
            "steps": [walk.tolist() if num_channels > 1 else walk[:, 0].tolist() for walk in steps],
            "weather": rng.choice(["sun", "rain"], num_rows),
            "place": np.where(distance > 0, "east", "west"),
            "distance": distance,
        }
    )
