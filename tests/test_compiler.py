from __future__ import annotations

import pytest
import torch
from test_loop import IMAGES, TABLE, job_for, train

from raynn.compiler import compile_network
from raynn.errors import TrainingError
from raynn.preprocessing import InputSpec


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of torch's own parts
@pytest.mark.parametrize(
    ("inputs", "how"),
    [(TABLE, True), (IMAGES, True), (TABLE, "reduce-overhead")],
    ids=["feedforward", "cnn", "reduce-overhead"],
)
def test_compiled_it_learns_the_same(inputs: InputSpec, how: bool | str) -> None:
    """To rounding, dropout and a last batch of another size among it."""
    import torch._dynamo

    records = {}
    for compiled in (False, how):
        torch._dynamo.utils.counters.clear()
        job = job_for(
            inputs, optimization={"compile": compiled, "max_epochs": 3}, regularization={"dropout": 0.3, "sam": 0.01}
        )
        records[compiled] = train(job, inputs).history
        assert bool(torch._dynamo.utils.counters["frames"]["ok"]) == bool(compiled)
    for plain, other in zip(records[False], records[how], strict=True):
        assert other["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-4)
        assert other["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-4)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"needs a C\+\+ compiler on every machine.*, name another"):
        compile_network(torch.nn.Linear(1, 1), torch.device("cpu"))
