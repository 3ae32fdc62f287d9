"""`network.kind: custom`: the page that says how, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from raynn.errors import JobError
from raynn.folder import read_result
from raynn.job import Job
from raynn.networks import NETWORKS
from raynn.preprocessing import InputSpec
from raynn.regularization import RegularizationSettings
from raynn.run import open_run
from raynn.trainer import train

ROOT = Path(__file__).parents[1]


def built(target: str, **settings: Any) -> Any:
    chosen = NETWORKS["custom"].settings(kind="custom", target=target, settings=settings)
    return NETWORKS["custom"].build(chosen, InputSpec(num_numeric=2), RegularizationSettings())


def refusal(target: str, **settings: Any) -> str:
    with pytest.raises(JobError) as caught:
        built(target, **settings)
    return str(caught.value)


def test_the_page_shows_the_files() -> None:
    page = (ROOT / "docs" / "custom_network.md").read_text()
    shown = re.findall(r"^`(\S+)`:\n\n|^and `(\S+)`:\n\n", page, flags=re.MULTILINE)
    blocks = re.findall(r"^```\w+\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names = [one or other for one, other in shown]
    assert names == ["jobs/digits_mixer.py", "jobs/digits_mixer.yaml"]
    assert blocks == [(ROOT / name).read_text() for name in names]


def test_the_example_trains_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    job = Job.load("jobs/digits_mixer.yaml", ["optimization.max_epochs=2", f"storage={tmp_path}"])
    run = train(job, ROOT / "jobs")
    result = read_result(run)
    assert result["metrics"]["test/accuracy"] > 0.4, "10 classes"
    found = open_run(run).evaluate()
    assert found["test/accuracy"] == pytest.approx(result["metrics"]["test/accuracy"], abs=1e-9)


def test_settings_arrive() -> None:
    assert built("own_network:narrow", width=5).out_features == 5
    assert built("own_network:build", size=5).head.in_features == 5


@pytest.mark.parametrize(
    ("target", "settings", "expected"),
    [
        (
            "own_networks:build",
            {},
            "network.target = 'own_networks:build' cannot be imported (No module named 'own_networks'); run from the "
            "folder that holds own_networks, or install the package, on every node",
        ),
        (
            "own_network:narow",
            {},
            "network.target = 'own_network:narow': own_network has no function 'narow'. Did you mean 'narrow'?",
        ),
        ("own_network:NOT_A_FUNCTION", {}, "own_network has no function 'NOT_A_FUNCTION'."),
        (
            "own_network:narrow",
            {"widht": 3},
            "network.settings do not fit own_network:narrow, which is called as build(inputs, regularization, "
            "**settings): got an unexpected keyword argument 'widht'. Did you mean 'width'? Its settings: width",
        ),
        (
            "own_network:no_module",
            {},
            "network.target = 'own_network:no_module' returned a str; return a torch.nn.Module",
        ),
    ],
)
def test_what_is_no_network(target: str, settings: dict[str, Any], expected: str) -> None:
    assert refusal(target, **settings).endswith(expected)


@pytest.mark.parametrize("target", ["own_network", "own-network:build", ":build", "a:b:c", "x.py:build()"])
def test_a_target_is_a_module_and_a_function(target: str) -> None:
    with pytest.raises(JobError, match=r"network\.target"):
        Job.from_dict({"data": {"train": "digits", "target": "label"}, "network": {"kind": "custom", "target": target}})
