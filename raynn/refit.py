"""How long to train anew on training and validation rows together, and at which rates, once stopping has found it.

Goodfellow, Bengio & Courville, Deep Learning (2016), section 7.8, algorithm 7.2: early stopping finds the number of
steps i*, the parameters are set to their initial values again, and all rows are trained on for i* steps. The book
leaves open whether steps or passes over the rows should be equal; here, as in the algorithm, it is the steps: the same
number of updates from batches of the same size, hence somewhat fewer passes over the more numerous rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raynn.job import Job
from raynn.optimization import OptimizationSettings, learning_rate, plateau_reductions
from raynn.stopping import Decision


@dataclass(frozen=True)
class Refit:
    """The length of training that was found, and what was done to the rate in each epoch on the way to it.

    `reductions` are those of the plateau schedule so far, `factors` those of early stopping's reactions; of epochs of
    `steps_per_epoch` steps.
    """

    num_steps: int
    steps_per_epoch: int
    reductions: tuple[int, ...]
    factors: tuple[float, ...]
    settings: OptimizationSettings

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
            settings=job.optimization,
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step (0 is the first): the schedule as it is over the length that was found, so that
        one that falls has fallen at its end.
        """
        epoch = step // self.steps_per_epoch
        return self.factors[epoch] * learning_rate(self.settings, step, self.num_steps, self.reductions[epoch])
