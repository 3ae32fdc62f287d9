"""Which settings of a search mattered, how sure that is, and which trials no other beats.

Shapes: N trials, S settings, R resamples, M objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 24
TREES = 32
REPEATS = 4  # shuffles of a setting
MIN_TRIALS = 10
MAX_TRIALS = 2000  # more say the same; a forest of 10,000 takes 40 s
BOUNDS = (0.1, 0.9)


@dataclass(frozen=True)
class Importance:
    """Of each setting: the share of R2 that goes with it, mean and BOUNDS over resamples of the trials."""

    names: tuple[str, ...]
    mean_S: Floats
    low_S: Floats
    high_S: Floats
    r2: float  # of the forest on trials it did not see; at or below 0 the rest says nothing
    num_trials: int


def columns_of(values: Sequence[Sequence[Any]], logs: Sequence[bool]) -> Floats:
    """Settings [N, S] as numbers: logarithms where they were searched so, categories by their mean rank of appearance,
    NaN where a trial does not have the setting.
    """
    columns = []
    for column, log in zip(zip(*values, strict=True), logs, strict=True):
        if all(x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in column):
            numbers = np.array([np.nan if x is None else float(x) for x in column])
            columns.append(np.log(numbers) if log else numbers)
        else:
            known = sorted({str(x) for x in column if x is not None})
            columns.append(np.array([np.nan if x is None else float(known.index(str(x))) for x in column]))
    return np.stack(columns, axis=1)


def importance(
    names: Sequence[str], x_NS: Floats, y_N: Floats, beside_N: Floats | None = None, seed: int = 0
) -> Importance | None:
    """Permutation importance (Breiman 2001, section 10) of a random forest of the trials, on those left out of each
    bootstrap resample. None of fewer than MIN_TRIALS trials, or where all gave the same.

    A setting is worth the R2 that is lost when it is shuffled; two settings that always went together share theirs.
    `beside_N` is what the forest knows besides the settings, and is not ranked: how long a trial was trained. Of more
    than MAX_TRIALS trials so many are looked at, taken at random.
    """
    from sklearn.ensemble import RandomForestRegressor

    if len(y_N) < MIN_TRIALS or not np.ptp(y_N) > 0 or not len(names):
        return None
    random = np.random.default_rng(seed)
    if beside_N is not None:
        x_NS = np.concatenate([x_NS, beside_N[:, None]], axis=1)
    if len(y_N) > MAX_TRIALS:
        taken = np.sort(random.choice(len(y_N), MAX_TRIALS, replace=False))
        x_NS, y_N = x_NS[taken], y_N[taken]
    num_trials = len(y_N)
    lost_RS, r2_R = [], []
    for resample in range(RESAMPLES):
        chosen = random.integers(0, num_trials, num_trials)
        left = np.setdiff1d(np.arange(num_trials), chosen)
        spread = ((y_N[left] - y_N[left].mean()) ** 2).sum() if len(left) > 2 else 0.0
        if spread == 0.0:
            continue
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.7, random_state=resample)
        forest.fit(x_NS[chosen], y_N[chosen])
        error = ((forest.predict(x_NS[left]) - y_N[left]) ** 2).sum()
        # every shuffle of every setting in one call: the forest's cost is in calls, not in rows
        shuffled = np.tile(x_NS[left], (len(names) * REPEATS, 1, 1))
        for s in range(len(names)):
            for r in range(REPEATS):
                shuffled[s * REPEATS + r, :, s] = random.permutation(x_NS[left, s])
        told = forest.predict(shuffled.reshape(-1, x_NS.shape[1])).reshape(len(names), REPEATS, len(left))
        worse_S = ((told - y_N[left]) ** 2).sum(axis=2).mean(axis=1)
        lost_RS.append(np.maximum(worse_S - error, 0.0) / spread)
        r2_R.append(1.0 - error / spread)
    if not lost_RS:
        return None
    lost = np.array(lost_RS)
    share = lost / np.maximum(lost.sum(axis=1, keepdims=True), 1e-12)
    low, high = np.quantile(share, BOUNDS, axis=0)
    return Importance(tuple(names), share.mean(axis=0), low, high, float(np.mean(r2_R)), num_trials)


def pareto_front(values_NM: Floats, higher_M: Sequence[bool]) -> NDArray[np.bool_]:
    """Which trials [N] no other equals or beats in every objective and beats in one; NaN is never on the front."""
    cost_NM = np.where(np.asarray(higher_M), -values_NM, values_NM)
    whole = np.asarray(~np.isnan(cost_NM).any(axis=1))
    front: NDArray[np.bool_] = np.array(whole)
    for n in np.flatnonzero(whole):
        others = cost_NM[whole]
        beaten = (others <= cost_NM[n]).all(axis=1) & (others < cost_NM[n]).any(axis=1)
        front[n] = not beaten.any()
    return front
