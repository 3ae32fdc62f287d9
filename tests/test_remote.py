"""A folder and what is kept of it at a URL: on a real server, whole or not at all, whoever writes."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from s3 import Bucket, Line

from raynn.checkpoint import load_newest, save_checkpoint
from raynn.remote import MANIFEST, Remote, WrittenElsewhereError, join_url, split_url


def kept_at(bucket: Bucket, folder: Path, name: str = "run", **options: Any) -> Remote:
    folder.mkdir(parents=True, exist_ok=True)
    return Remote(folder, bucket.url(name), **options)


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def contents(folder: Path) -> dict[str, str]:
    """What belongs to the run."""
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    found.pop(MANIFEST, None)
    return found


@pytest.mark.parametrize(
    ("url", "above", "name", "below"),
    [
        ("s3://b/runs/x", "s3://b/runs", "x", "s3://b/runs/x/job.yaml"),
        ("s3://b/runs/x/", "s3://b/runs", "x", "s3://b/runs/x/job.yaml"),
        ("s3://b/x?scheme=http&a=b", "s3://b?scheme=http&a=b", "x", "s3://b/x/job.yaml?scheme=http&a=b"),
    ],
)
def test_addresses(url: str, above: str, name: str, below: str) -> None:
    assert split_url(url) == (above, name)
    assert join_url(url, "job.yaml") == below


def test_what_is_sent_arrives_and_what_is_removed_goes(bucket: Bucket, tmp_path: Path) -> None:
    here, there = kept_at(bucket, tmp_path / "a"), kept_at(bucket, tmp_path / "b")
    write(here.folder, job="1", model__weights="22", scratch__rows="no", x_partial="yes")
    write(here.folder, **{"mirrors.lock": "", "report.html.partial-12": "no"})
    assert here.push()
    assert not here.push(), "nothing has changed"
    there.pull()
    assert contents(there.folder) == {"job": "1", "model/weights": "22", "x_partial": "yes"}
    (here.folder / "model" / "weights").unlink()
    write(here.folder, job="333", late="4")
    assert here.push()
    there.pull()
    assert contents(there.folder) == {"job": "333", "late": "4", "x_partial": "yes"}
    assert not (there.folder / "model").exists()
    assert bucket.names("run") == ["job", "late", MANIFEST, "x_partial"]


def test_an_unchanged_file_is_not_fetched_again(bucket: Bucket, tmp_path: Path) -> None:
    here, there = kept_at(bucket, tmp_path / "a"), kept_at(bucket, tmp_path / "b")
    write(here.folder, large="same", small="old")
    here.push()
    there.pull()
    before = (there.folder / "large").stat().st_ino
    write(here.folder, small="new")
    here.push()
    there.pull()
    assert contents(there.folder) == {"large": "same", "small": "new"}
    assert (there.folder / "large").stat().st_ino == before


def test_what_was_not_yet_sent_stays_where_nobody_else_has_written(bucket: Bucket, tmp_path: Path) -> None:
    """A command that was killed with something unsent goes on where it was, not where the server is."""
    first = kept_at(bucket, tmp_path / "a")
    write(first.folder, metrics="1")
    first.push()
    write(first.folder, metrics="1 2")
    again = kept_at(bucket, tmp_path / "a")
    assert again.pull(keep_both=True) is None
    assert contents(first.folder) == {"metrics": "1 2"}
    again.push()
    assert bucket.read("run/metrics") == b"1 2"


def test_what_was_not_yet_sent_is_set_aside_where_another_has_gone_on(bucket: Bucket, tmp_path: Path) -> None:
    here, there = kept_at(bucket, tmp_path / "a"), kept_at(bucket, tmp_path / "b")
    write(here.folder, metrics="1", job="a")
    here.push()
    there.pull()
    write(there.folder, metrics="1 two")
    there.push()
    write(here.folder, metrics="1 2", note="mine")
    again = kept_at(bucket, tmp_path / "a")
    moved = again.pull(keep_both=True)
    assert moved is not None
    assert contents(moved) == {"metrics": "1 2", "note": "mine", "job": "a"}
    assert contents(again.folder) == {"metrics": "1 two", "job": "a"}


def test_a_file_of_its_own_stays_beside_what_another_has_written(bucket: Bucket, tmp_path: Path) -> None:
    here, there = kept_at(bucket, tmp_path / "a"), kept_at(bucket, tmp_path / "b")
    write(here.folder, metrics="1")
    here.push()
    there.pull()
    write(there.folder, metrics="1 2")
    there.push()
    write(here.folder, **{"wandb.json": "sent"})
    assert here.pull(keep_both=True) is None
    assert contents(here.folder) == {"metrics": "1 2", "wandb.json": "sent"}
    here.push()
    assert bucket.read("run/wandb.json") == b"sent"


def test_whoever_was_taken_over_from_writes_no_more(bucket: Bucket, tmp_path: Path) -> None:
    here, there = kept_at(bucket, tmp_path / "a"), kept_at(bucket, tmp_path / "b")
    write(here.folder, metrics="1")
    here.push()
    there.pull()
    write(there.folder, metrics="1 2")
    there.push()
    write(here.folder, metrics="1 of the old one")
    with pytest.raises(WrittenElsewhereError):
        here.push()
    assert bucket.read("run/metrics") == b"1 2"


def test_checkpoints_are_named_once_they_are_whole(bucket: Bucket, tmp_path: Path) -> None:
    """A reader never sees half: whatever is written there last, the newest checkpoint of the manifest can be read."""
    here = kept_at(bucket, tmp_path / "a")
    stop, seen = threading.Event(), list[int]()

    def read() -> None:
        while not stop.is_set():
            reader = kept_at(bucket, tmp_path / f"reader-{len(seen)}")
            reader.pull()
            state, _ = load_newest(reader.folder / "checkpoints")
            seen.append(-1 if state is None else int(state["epoch"]))

    def save(epoch: int) -> None:
        weights = torch.full((50_000,), float(epoch))
        save_checkpoint(here.folder / "checkpoints", epoch, {"epoch": epoch, "w": weights})
        here.push()

    save(1)
    thread = threading.Thread(target=read)
    thread.start()
    for epoch in range(2, 13):
        save(epoch)
    stop.set()
    thread.join()
    assert seen == sorted(seen), "a reader saw an older state than one before"
    assert seen[0] >= 1, "a reader saw no whole checkpoint where there was one"
    last = kept_at(bucket, tmp_path / "last")
    last.pull()
    assert load_newest(last.folder / "checkpoints")[0]["epoch"] == 12  # type: ignore[index]
    assert sorted({name.split("/")[1] for name in bucket.names("run") if name.startswith("checkpoints/")}) == [
        "epoch-00011",
        "epoch-00012",
    ]


def test_a_checkpoint_that_was_begun_is_not_named(bucket: Bucket, tmp_path: Path) -> None:
    """The line is cut between the files of a checkpoint: whoever looks resumes from the one before."""
    line = Line(bucket.port)
    here = kept_at(Bucket(bucket.name, line.port), tmp_path / "a")
    save_checkpoint(here.folder / "checkpoints", 1, {"epoch": 1})
    here.push()
    save_checkpoint(here.folder / "checkpoints", 2, {"epoch": 2})
    whole_send = here._send

    def cut_in_between(unit: list[str]) -> dict[str, Any]:
        whole_send([path for path in unit if path.endswith("state.json")])
        line.cut()
        return whole_send(unit)

    here._send = cut_in_between  # type: ignore[method-assign]
    with pytest.raises(OSError, match=r".+"):
        here.push()
    assert "checkpoints/epoch-00002/state.json" in bucket.names("run")
    reader = kept_at(bucket, tmp_path / "b")
    reader.pull()
    assert load_newest(reader.folder / "checkpoints") == ({"epoch": 1}, [])
    line.mend()
    here._send = whole_send  # type: ignore[method-assign]
    here.push()
    reader.pull()
    assert load_newest(reader.folder / "checkpoints") == ({"epoch": 2}, [])
    line.cut()


def test_a_checkpoint_that_is_removed_meanwhile_is_no_matter(bucket: Bucket, tmp_path: Path) -> None:
    here = kept_at(bucket, tmp_path / "a")
    for epoch in (1, 2):
        save_checkpoint(here.folder / "checkpoints", epoch, {"epoch": epoch})
    listed = here.local

    looks: list[dict[str, tuple[int, int]]] = []

    def removed_after_the_last_look() -> dict[str, tuple[int, int]]:
        looks.append(listed())
        if len(looks) == 2:
            save_checkpoint(here.folder / "checkpoints", 3, {"epoch": 3})
        return looks[-1]

    here.local = removed_after_the_last_look  # type: ignore[method-assign]
    here.push()
    here.local = listed  # type: ignore[method-assign]
    reader = kept_at(bucket, tmp_path / "b")
    reader.pull()
    assert load_newest(reader.folder / "checkpoints") == ({"epoch": 2}, [])
    here.push()
    reader.pull()
    assert load_newest(reader.folder / "checkpoints") == ({"epoch": 3}, [])
    assert not [name for name in bucket.names("run") if "epoch-00001" in name]


def test_a_reader_takes_no_checkpoints_and_leaves_them_there(bucket: Bucket, tmp_path: Path) -> None:
    """And whoever trains on from the same copy fetches them."""
    here = kept_at(bucket, tmp_path / "a")
    write(here.folder, job="1")
    save_checkpoint(here.folder / "checkpoints", 1, {"epoch": 1})
    here.push()
    reader = kept_at(bucket, tmp_path / "b", whole=False)
    reader.pull()
    assert contents(reader.folder) == {"job": "1"}
    trainer = kept_at(bucket, tmp_path / "b")
    trainer.pull(keep_both=True)
    assert load_newest(trainer.folder / "checkpoints") == ({"epoch": 1}, [])
    write(trainer.folder, job="2")
    trainer.push()
    assert "checkpoints/epoch-00001/tensors.safetensors" in bucket.names("run")


def test_a_folder_that_was_copied_there_by_hand(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path / "mine", job="1", model__weights="2")
    bucket.upload(tmp_path / "mine", "run")
    reader = kept_at(bucket, tmp_path / "b")
    reader.pull()
    assert contents(reader.folder) == {"job": "1", "model/weights": "2"}
    write(reader.folder, metrics="3")
    reader.push()
    again = kept_at(bucket, tmp_path / "c")
    again.pull()
    assert contents(again.folder) == {"job": "1", "model/weights": "2", "metrics": "3"}


def test_only_one_of_many_claims_a_folder(bucket: Bucket, tmp_path: Path) -> None:
    for attempt in range(5):
        found: list[bool | None] = []
        remotes = [kept_at(bucket, tmp_path / str(number), f"run-{attempt}") for number in range(6)]
        gate = threading.Barrier(len(remotes))

        def take(remote: Remote, gate: threading.Barrier = gate, found: list[bool | None] = found) -> None:
            gate.wait()
            found.append(remote.claim())

        threads = [threading.Thread(target=take, args=(remote,)) for remote in remotes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found.count(True) <= 1, found
        if True not in found:  # all withdrew: the next one has it
            assert bucket.names(f"run-{attempt}") == []
            assert remotes[0].claim()
        assert remotes[1].claim() is False


def test_a_claim_goes_with_the_first_files(bucket: Bucket, tmp_path: Path) -> None:
    here = kept_at(bucket, tmp_path / "a")
    assert here.claim()
    assert len(bucket.names("run")) == 1
    write(here.folder, job="1")
    here.push()
    assert bucket.names("run") == ["job", MANIFEST]


def test_progress_alone_is_sent_now_and_then(bucket: Bucket, tmp_path: Path) -> None:
    here = kept_at(bucket, tmp_path / "a")
    write(here.folder, job="1", **{"progress.json": "{}"})
    assert here.push()
    write(here.folder, **{"progress.json": '{"epochs_done": 1}'})
    assert not here.push()
    write(here.folder, metrics="1")
    assert here.push()
    assert json.loads(bucket.read("run/progress.json") or b"") == {"epochs_done": 1}


def test_a_file_that_grows_while_it_is_sent_is_sent_again(bucket: Bucket, tmp_path: Path) -> None:
    here = kept_at(bucket, tmp_path / "a")
    write(here.folder, metrics="1")
    listed = here.local

    def grown_after_the_look() -> dict[str, tuple[int, int]]:
        found = listed()
        write(here.folder, metrics="1 2")
        os.utime(here.folder / "metrics", ns=(time.time_ns(), time.time_ns()))
        return found

    here.local = grown_after_the_look  # type: ignore[method-assign]
    here.push()
    here.local = listed  # type: ignore[method-assign]
    reader = kept_at(bucket, tmp_path / "b")
    here.push()
    reader.pull()
    assert contents(reader.folder) == {"metrics": "1 2"}


def test_weights_that_were_damaged_there_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    """Of the same size, which nothing but the checksum tells."""
    here = kept_at(bucket, tmp_path / "a")
    write(here.folder, model__weights="1234", **{"model/w.safetensors": "1234", "metrics": "1"})
    here.push()
    bucket.write("run/model/w.safetensors", b"1235")
    with pytest.raises(OSError, match=r"model/w\.safetensors differs from its checksum"):
        kept_at(bucket, tmp_path / "b").pull()
    bucket.write("run/model/w.safetensors", b"1234")
    kept_at(bucket, tmp_path / "b").pull()


@pytest.mark.parametrize("emptied", ["manifest.json", "search.jsonl"])
def test_whoever_is_killed_while_a_file_is_emptied_leaves_a_spare_one(emptied: str, tmp_path: Path) -> None:
    """Where a file is emptied before it is written, which S3 and Google's storage never do, but Azure's."""
    there, url = tmp_path / "there", f"file://{tmp_path}/there"
    there.mkdir()
    (tmp_path / "a").mkdir()
    here = Remote(tmp_path / "a", url)
    write(here.folder, job="1", **{"search.jsonl": "begun\n"})
    here.push()
    before = (there / MANIFEST).read_bytes()
    write(here.folder, job="22", **{"search.jsonl": "begun\nended\n"})
    here.push()
    (there / MANIFEST).write_bytes(before)  # which comes after the journal
    (there / emptied).write_text("")
    for name in ("b", "c"):
        reader = Remote(tmp_path / name, url)
        reader.pull()
        assert contents(reader.folder) == {"job": "22", "search.jsonl": "begun\nended\n"}
        reader.push()
    assert (there / emptied).stat().st_size > 0 or emptied == MANIFEST


def test_a_journal_never_tells_of_what_is_not_there(bucket: Bucket, tmp_path: Path) -> None:
    """A trial ends between the look and the sending: its end is told once its model is there, and so is its result."""
    here = kept_at(bucket, tmp_path / "a")
    write(here.folder, **{"search.jsonl": "begun\n"})
    listed = here.local

    def ended_meanwhile() -> dict[str, tuple[int, int]]:
        found = listed()
        write(here.folder, **{"trials/0/model/w.safetensors": "1", "trials/0/result.json": "{}"})
        write(here.folder, **{"search.jsonl": "begun\nended\n"})
        here.local = listed  # type: ignore[method-assign]
        return found

    here.local = ended_meanwhile  # type: ignore[method-assign]
    here.push()
    reader = kept_at(bucket, tmp_path / "b")
    reader.pull()
    assert contents(reader.folder) == {"search.jsonl": "begun\n", "trials/0/model/w.safetensors": "1"}
    here.push()
    reader.pull()
    assert contents(reader.folder)["search.jsonl"] == "begun\nended\n"
    assert contents(reader.folder)["trials/0/result.json"] == "{}"


def test_what_could_not_be_fetched_is_not_removed_there(bucket: Bucket, tmp_path: Path) -> None:
    """A pull that breaks off leaves a copy without some files: to send from it must not be to remove them."""
    here, there = kept_at(bucket, tmp_path / "a"), kept_at(bucket, tmp_path / "b")
    write(here.folder, job="1", metrics="2")
    here.push()
    download = there._download

    def broken(path: str, stamp: tuple[int, int], expected: str | None) -> bool:
        if path == "metrics":
            raise OSError("the line broke")
        return download(path, stamp, expected)

    there._download = broken  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the line broke"):
        there.pull()
    with pytest.raises(OSError, match="the line broke"):
        there.push()
    there._download = download  # type: ignore[method-assign]
    there.push()
    assert bucket.names("run") == ["job", MANIFEST, "metrics"]
    assert contents(there.folder) == {"job": "1", "metrics": "2"}
