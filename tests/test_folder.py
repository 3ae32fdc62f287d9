from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

import raynn.folder
from raynn.errors import JobError, RunError
from raynn.folder import (
    PACKAGES,
    check_run,
    check_storage,
    claim,
    environment,
    finite,
    newest,
    read_result,
    write_bad_rows,
    write_json,
)
from raynn.fragments import BadRow


def test_a_run_of_another_job_is_not_the_newest(tmp_path: Path) -> None:
    for name in ("a", "a-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.yaml").write_text(f"name: {name}\n")
    assert newest(tmp_path, "a") == tmp_path / "a"
    assert newest(tmp_path, "a-2") == tmp_path / "a-2"


def test_numbers_that_json_does_not_know_become_null() -> None:
    content = {"a": math.nan, "b": [math.inf, (-math.inf, 1.5)], "c": {"d": "NaN", "e": None, "f": True, "g": 2}}
    assert finite(content) == {"a": None, "b": [None, [None, 1.5]], "c": {"d": "NaN", "e": None, "f": True, "g": 2}}


def test_a_json_file_is_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1.0, "y": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.0, "y": None}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text())["x"] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_storage_is_made_and_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_storage("deep/runs") == tmp_path / "deep" / "runs"
    assert list((tmp_path / "deep" / "runs").iterdir()) == []


@pytest.mark.parametrize(("storage", "reason"), [("file", "File exists"), ("file/runs", "Not a directory")])
def test_storage_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    message = (
        f"storage = {storage!r} cannot be written: {reason}; choose a folder you may write, for instance storage=runs"
    )
    with pytest.raises(JobError, match=f"^{re.escape(message)}$"):
        check_storage(storage)


def test_every_claim_is_a_folder_of_its_own(tmp_path: Path) -> None:
    claimed = [claim(tmp_path, "digits") for _ in range(3)]
    assert [folder.name for folder in claimed] == ["digits", "digits-2", "digits-3"]
    assert all((folder / "checkpoints").is_dir() for folder in claimed)


def test_newest_counts_numbers_not_letters(tmp_path: Path) -> None:
    for number in range(1, 12):
        (tmp_path / ("a" if number == 1 else f"a-{number}")).mkdir()
    for other in ("a-b", "ab", "a-2-3", "b-99"):
        (tmp_path / other).mkdir()
    (tmp_path / "a-50").touch()  # a file is no run
    assert newest(tmp_path, "a").name == "a-11"
    assert newest(tmp_path, "a-2").name == "a-2-3"


def test_no_run_to_resume(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "job.yaml").touch()
    message = (
        f"resume = true, but {tmp_path} holds no run named 'digit'; run without resume=true to start one. "
        "Did you mean 'digits'?"
    )
    with pytest.raises(RunError, match=f"^{re.escape(message)}$"):
        newest(tmp_path, "digit")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    run = claim(tmp_path, "digits")
    with pytest.raises(RunError, match=f"^{re.escape(f'{run} is not a run folder: it holds no job.yaml')}; name a"):
        check_run(run)
    (run / "job.yaml").touch()
    assert check_run(run) == run
    message = f"there is no run folder {tmp_path / 'digts'}. Did you mean 'digits'? `raynn train JOB.yaml` makes one"
    with pytest.raises(RunError, match=f"^{re.escape(message)}$"):
        check_run(tmp_path / "digts")
    with pytest.raises(RunError, match="there is no run folder"):
        check_run(tmp_path / "absent" / "digits")


def test_the_result_of_a_run_that_has_not_ended(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no result\.json: the run has not ended; continue it with .* resume=true"):
        read_result(tmp_path)
    write_json(tmp_path / "result.json", {"epochs": 3})
    assert read_result(tmp_path) == {"epochs": 3}
    (tmp_path / "result.json").write_text('{"epochs": 3')
    with pytest.raises(RunError, match=r"result\.json is damaged \(.+\); restore it, or train again$"):
        read_result(tmp_path)


def test_bad_rows_are_one_json_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "bad_rows.jsonl"
    write_bad_rows(path, [])
    assert not path.exists()
    rows = [BadRow("a.csv", 3, "x", "not a number"), BadRow("ü.csv", 4, None, "3 fields\nof 4")]
    write_bad_rows(path, iter(rows))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row.to_json() for row in rows]
    write_bad_rows(path, [])
    assert not path.exists(), "an earlier file tells of rows that are good now"


def test_the_environment_is_plain_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raynn.folder, "PACKAGES", (*PACKAGES, "no-such-package"))
    found = environment(3, ["a GPU"])
    assert json.loads(json.dumps(found)) == found
    assert found["seed"] == 3
    assert found["packages"]["no-such-package"] is None
    assert found["packages"]["torch"].startswith("2.")


def test_outside_of_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment(0, [])["git_commit"] is None
    monkeypatch.setenv("PATH", "")
    assert environment(0, [])["git_commit"] is None
