"""How long to train anew on training and validation rows together, and at which rates, once stopping has found it.

Goodfellow, Bengio & Courville, Deep Learning (2016), section 7.8, algorithm 7.2: early stopping finds the number of
steps i*, the parameters are set to their initial values again, and all rows are trained on for i* steps. The book
leaves open whether steps or passes over the rows should be equal; here, as in the algorithm, it is the steps: the same
number of updates from batches of the same size, hence somewhat fewer passes over the more numerous rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from raynn.job import ChangeSettings, Job
from raynn.optimization import OptimizationSettings, learning_rate, plateau_reductions
from raynn.stopping import Decision


@dataclass(frozen=True)
class Refit:
    """The length of training that was found, and what was done to the rate in each epoch on the way to it.

    By epochs of `steps_per_epoch` steps, whose numbers (from 1) are `path`: `reductions` of the plateau schedule so
    far, `factors` of early stopping's reactions.
    """

    num_steps: int
    steps_per_epoch: int
    reductions: tuple[int, ...]
    factors: tuple[float, ...]
    path: tuple[int, ...]

    @classmethod
    def found(cls, job: Job, history: Sequence[Mapping[str, float]], decision: Decision) -> Refit:
        """From a history that has ended. Epochs that training went back behind led nowhere, and are no part of it.

        Args:
            job: the job whose history it is.
            history: one record an epoch.
            decision: the decision after its last epoch.
        """
        steps = int(history[0]["step"])
        losses = [record["val/loss"] for record in history]
        path = decision.path
        return cls(
            num_steps=len(path) * steps,
            steps_per_epoch=steps,
            reductions=tuple(plateau_reductions(job.optimization, losses[: epoch - 1]) for epoch in path),
            factors=tuple(
                job.early_stopping.factor ** sum(r.epoch < epoch for r in decision.reactions) for epoch in path
            ),
            path=path,
        )

    def rate(self, settings: OptimizationSettings, step: int) -> float:
        """The learning rate of a step (0 is the first): the schedule as it is over the length that was found, so that
        one that falls has fallen at its end.
        """
        epoch = step // self.steps_per_epoch
        return self.factors[epoch] * learning_rate(settings, step, self.num_steps, self.reductions[epoch])

    def job(self, job: Job, steps_per_epoch: int) -> Job:
        """The job, its settings changing after the epoch, of so many steps, that ends nearest to where they did."""
        changes: dict[int, dict[str, JsonValue]] = {}
        for change in job.changes:
            step = sum(epoch <= change.after_epoch for epoch in self.path) * self.steps_per_epoch
            epoch = max(1, round(step / steps_per_epoch))
            if epoch * steps_per_epoch < self.num_steps:
                changes[epoch] = {**changes.get(epoch, {}), **change.settings}
        made = (ChangeSettings(after_epoch=epoch, settings=settings) for epoch, settings in changes.items())
        return job.model_copy(update={"changes": tuple(made)})
