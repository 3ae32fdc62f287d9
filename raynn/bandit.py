"""Population-based bandits: a Gaussian process over what settings have gained at which time says which to try next.

Parker-Holder et al. 2020 ("Provably efficient online hyperparameter optimization with population-based bandits"), with
the time-varying process of Bogunovic et al. 2016 (TV-GP-UCB): what was learned of settings fades with its age.

Shapes: N observations, M points asked about, D coordinates of a point (the value before, then one a setting).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from raynn.exploration import (
    MAX_MOVES,
    Allowed,
    Space,
    all_are_allowed,
    at_position,
    drawn,
    perturbed,
    position,
    random_for,
)
from raynn.ledger import Trial, Values
from raynn.race import Race

MAX_OBSERVATIONS = 300  # the newest; a fit is cubic in them
NUM_CANDIDATES = 256


class Kernel(NamedTuple):
    """The time-varying process: variance 1, as observations are standardized."""

    lengthscale: float
    epsilon: float  # how fast what was learned fades, a generation
    noise: float  # variance of an observation around the process

    def between(self, x_ND: Any, t_N: Any, x_MD: Any, t_M: Any) -> Any:
        """Covariances [N, M]: exp(-|x - x'|**2 / (2 lengthscale**2)) * (1 - epsilon)**(|t - t'| / 2), the squared
        exponential times the kernel of time of Bogunovic et al. 2016, section 3.
        """
        return self.of(*_apart(x_ND, t_N, x_MD, t_M))

    def of(self, distance_NM: Any, age_NM: Any) -> Any:
        """The same of squared distances and ages."""
        import numpy as np

        return np.exp(age_NM * (0.5 * math.log1p(-self.epsilon)) - distance_NM * (0.5 / self.lengthscale**2))


def _apart(x_ND: Any, t_N: Any, x_MD: Any, t_M: Any) -> tuple[Any, Any]:
    return ((x_ND[:, None, :] - x_MD[None, :, :]) ** 2).sum(-1), abs(t_N[:, None] - t_M[None, :])


# Where the kernel is sought: as logarithms, with the value it starts from.
_BOUNDS = {"lengthscale": (0.05, 5.0, 0.5), "epsilon": (1e-3, 0.5, 0.1), "noise": (1e-4, 1.0, 0.05)}


@dataclass(frozen=True)
class Observation:
    """What one interval of training gave."""

    generation: int  # at its end
    before: float  # the score that it began with; lower is better
    gain: float  # by how much the score fell
    settings: Values


@dataclass(frozen=True)
class Bandit:
    """Chooses the settings of trials that take over; choices between values, which have no scale, move as in pbt."""

    race: Race
    space: Space
    seed: int
    interval: int
    allowed: Allowed = all_are_allowed

    def settings_for(self, trial: Trial, donor: Trial, epochs: int, trials: Sequence[Trial]) -> Values:
        """The donor's, those of the space chosen anew: where the upper confidence bound of the gain is greatest, given
        the time and where the donor is, of what is allowed. Before anything was gained twice, at random within the
        bounds. The donor's own where nothing else was found to be allowed.
        """
        import numpy as np

        random = random_for(self.seed, epochs, trial.number)
        random.random()  # has chosen the donor
        before = donor.settings_now
        paths = [path for path in self.space if path in before]
        numbers = [path for path in paths if position(self.space[path], before[path]) is not None]
        seen = self.observations(trials, epochs)[-MAX_OBSERVATIONS:]
        modeled = bool(numbers) and len(seen) >= 2

        def moved() -> Values:
            """Choices, and numbers where there is no model of them."""
            choices = {p: perturbed(self.space[p], before[p], random, 0.25) for p in paths if p not in numbers}
            drawn_now = {} if modeled else {path: drawn(self.space[path], random.random()) for path in numbers}
            return {**before, **choices, **drawn_now}

        settings = next(filter(self.allowed, (moved() for _ in range(MAX_MOVES))), dict(before))
        if not modeled:
            return settings
        generation = epochs // self.interval + 1
        # What others of this generation were given just now: where they will be observed, there is less to learn.
        given = [
            Observation(generation, self.race.latest(t, epochs), math.nan, t.settings_now)
            for t in trials
            if any(left.epochs == epochs for left in t.left)
        ]
        here = Observation(generation, self.race.latest(donor, epochs), math.nan, settings)
        x_ND, scale = self._points(seen, numbers)
        t_N = np.array([float(one.generation) for one in seen])
        y_N = np.array([one.gain for one in seen])
        y_N = (y_N - y_N.mean()) / (y_N.std() or 1.0)
        kernel = fitted_kernel(x_ND, t_N, y_N)
        pending_PD, _ = self._points(given, numbers, scale)
        here_D = self._points([here], numbers, scale)[0][0]

        t_P = np.full(len(given), float(generation))
        gain_of = posterior(kernel, x_ND, t_N, y_N)
        doubt_of = posterior(kernel, np.concatenate([x_ND, pending_PD]), np.concatenate([t_N, t_P]))
        weight = math.sqrt(beta(len(seen)))

        def bound(place_MD: Any) -> Any:
            x_MD = np.concatenate([np.full((len(place_MD), 1), here_D[0]), place_MD], axis=1)
            t_M = np.full(len(x_MD), float(generation))
            return gain_of(x_MD, t_M)[0] + weight * np.sqrt(doubt_of(x_MD, t_M)[1])

        def at(place_D: Any) -> Values:
            chosen = zip(numbers, place_D, strict=True)
            return settings | {path: at_position(self.space[path], float(place)) for path, place in chosen}

        best_D = greatest(bound, len(numbers), here_D[1:], random, lambda place_D: self.allowed(at(place_D)))
        return dict(before) if best_D is None else at(best_D)

    def observations(self, trials: Sequence[Trial], epochs: int) -> list[Observation]:
        """What every interval of every trial gave up to this many epochs, those included that were left for another's
        weights or that have failed since; in the order of time, then of numbers. What a trial has from a donor is the
        donor's, and counts once. What some have trained since then is not looked at: it would depend on the timing.
        """
        found = []
        for trial in trials:
            begun = 0
            for stretch in (*trial.left, trial):
                for end in range(begun + self.interval, min(stretch.epochs, epochs) + 1, self.interval):
                    if end == self.interval:
                        continue  # from nothing: a gain of another kind
                    before = self.race.latest(stretch, end - self.interval)
                    after = self.race.latest(stretch, end)
                    if math.isfinite(before) and math.isfinite(after):
                        one = Observation(end // self.interval, before, before - after, stretch.settings_now)
                        found.append((one.generation, trial.number, one))
                begun = stretch.epochs
        return [one for _, _, one in sorted(found, key=lambda entry: entry[:2])]

    def _points(
        self, seen: Sequence[Observation], numbers: Sequence[str], scale: tuple[float, float] | None = None
    ) -> tuple[Any, tuple[float, float]]:
        """Coordinates [N, D] in [0, 1] of observations, and lowest and highest score before, by which they are scaled:
        a gain depends on how much is left to gain.
        """
        import numpy as np

        if scale is None:
            before = [one.before for one in seen]
            scale = (min(before), max(before))
        low, width = scale[0], (scale[1] - scale[0]) or 1.0
        rows = []
        for one in seen:
            level = (one.before - low) / width if math.isfinite(one.before) else 1.0
            places = [position(self.space[path], one.settings.get(path)) for path in numbers]
            rows.append([min(max(level, 0.0), 1.0), *(0.5 if place is None else place for place in places)])
        return np.array(rows, dtype=float).reshape(len(rows), 1 + len(numbers)), scale


def beta(num_observations: int) -> float:
    """The weight of uncertainty in the bound, c1 + log(c2 t) with c1 = 0.2 and c2 = 0.4, as in the authors' code."""
    return 0.2 + max(0.0, math.log(0.4 * num_observations))


def posterior(kernel: Kernel, x_ND: Any, t_N: Any, y_N: Any = None) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Mean and variance [M] of the process as a function of points and times, given observations (Rasmussen & Williams
    2006, algorithm 2.1); without their values the mean is 0, and the variance, which does not depend on them, the same.
    """
    import numpy as np
    from scipy.linalg import cho_solve, cholesky, solve_triangular

    root_NN = cholesky(kernel.between(x_ND, t_N, x_ND, t_N) + kernel.noise * np.eye(len(t_N)), lower=True)
    weight_N = np.zeros(len(t_N)) if y_N is None else cho_solve((root_NN, True), y_N)

    def at(x_MD: Any, t_M: Any) -> tuple[Any, Any]:
        cross_NM = kernel.between(x_ND, t_N, x_MD, t_M)
        half_NM = solve_triangular(root_NN, cross_NM, lower=True)
        return cross_NM.T @ weight_N, np.maximum(1.0 - (half_NM**2).sum(0), 1e-12)

    return at


def log_likelihood(kernel: Kernel, x_ND: Any, t_N: Any, y_N: Any) -> tuple[float, Any]:
    """Log marginal likelihood of the observations, and its gradient [3] by the logarithms of lengthscale, epsilon and
    noise (Rasmussen & Williams 2006, eq. 5.8 and 5.9).
    """
    import numpy as np
    from scipy.linalg import cho_solve, cholesky

    distance_NN, age_NN = _apart(x_ND, t_N, x_ND, t_N)
    own_NN = kernel.of(distance_NN, age_NN)
    root_NN = cholesky(own_NN + kernel.noise * np.eye(len(t_N)), lower=True)
    weight_N = cho_solve((root_NN, True), y_N)
    value = -0.5 * y_N @ weight_N - np.log(np.diag(root_NN)).sum() - 0.5 * len(t_N) * math.log(2 * math.pi)
    slope_NN = 0.5 * (np.outer(weight_N, weight_N) - cho_solve((root_NN, True), np.eye(len(t_N))))
    gradient = [
        (slope_NN * own_NN * distance_NN).sum() / kernel.lengthscale**2,
        (slope_NN * own_NN * age_NN).sum() * -0.5 * kernel.epsilon / (1.0 - kernel.epsilon),
        np.trace(slope_NN) * kernel.noise,
    ]
    return float(value), np.array(gradient)


def fitted_kernel(x_ND: Any, t_N: Any, y_N: Any) -> Kernel:
    """The kernel under which the observations are most likely, within bounds."""
    import numpy as np
    from scipy.optimize import minimize

    def kernel_of(logs: Any) -> Kernel:
        return Kernel(*(float(value) for value in np.exp(logs)))

    def loss(logs: Any) -> tuple[float, Any]:
        value, gradient = log_likelihood(kernel_of(logs), x_ND, t_N, y_N)
        return -value, -gradient

    low, high, start = np.log(np.array(list(_BOUNDS.values()))).T
    bounds = list(zip(low, high, strict=True))
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 30})
    return kernel_of(np.clip(found.x, low, high))


def greatest(
    function: Any, num_places: int, start_D: Any, random: Random, allowed: Callable[[Any], bool] = lambda place_D: True
) -> Any:
    """Where in the unit cube a function of points [M, D] is greatest: of seeded candidates that are allowed the best
    three, improved locally (L-BFGS-B), and of those that are still allowed the best; None where no candidate is.
    """
    import numpy as np
    from scipy.optimize import minimize

    draws = [[random.random() for _ in range(num_places)] for _ in range(NUM_CANDIDATES)]
    candidates_MD = np.array([place_D for place_D in (list(start_D), *draws) if allowed(place_D)])
    if not len(candidates_MD):
        return None
    best = candidates_MD[np.argsort(-function(candidates_MD), kind="stable")[:3]]
    ends = [
        minimize(lambda x: -float(function(x[None, :])[0]), x, bounds=[(0.0, 1.0)] * num_places, method="L-BFGS-B").x
        for x in best
    ]
    final_MD = np.clip(np.array([*best, *filter(allowed, ends)]), 0.0, 1.0)
    return final_MD[int(np.argmax(function(final_MD)))]
