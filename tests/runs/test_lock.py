"""One process at a time in a run's folder."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from folders import start, work
from rayscope import files
from rayscope.files import PARTIAL
from rayscope.runs import run as runs
from rayscope.runs.lock import LOCK, InUse, locked
from rayscope.runs.run import OUTPUTS, Finished

HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from folders import start
with start(Path(sys.argv[2]), 1):
    print("here", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_a_second_process_is_refused_and_told_who_works_there_until_that_is_killed(tmp_path, refused):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(Path(__file__).parents[1]), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "here\n"
        for command in OUTPUTS:
            for overwrite in (False, True):
                said = refused(folder, "is in use by process", command=command, overwrite=overwrite)
        who = f"process {process.pid} on {os.uname().nodename} (rayscope train k=1)"
        assert f"{who}; wait for it, or give another out=" in said
        with pytest.raises(InUse), runs.occupied(folder, ["report"]):
            pass
    finally:
        process.kill()
        process.communicate()
    assert (folder / LOCK).exists()
    with start(folder, 2):  # nothing had been written yet, so it stands in nobody's way
        work(folder, 2)
    assert not (folder / LOCK).exists()


def test_a_finished_run_says_so_while_another_command_works_there(old):
    with start(old, 1, command="evaluate"):
        with pytest.raises(Finished), start(old, 1):
            pass
        with pytest.raises(InUse), start(old, 2):
            pass


def test_a_finished_run_on_a_disk_that_is_read_only_says_so(old, monkeypatch):
    inner = os.open

    def read_only(path, flags, *args, **kwargs):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return inner(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(Finished), start(old, 1):
        pass
    for options in ({"k": 2}, {"k": 1, "overwrite": True}, {"command": "evaluate"}):
        with pytest.raises(OSError, match="Read-only"), start(old, **options):
            pass


def test_a_lock_that_is_removed_before_it_is_ours_is_not_taken(tmp_path, monkeypatch):
    """The one before unlinks its file between our opening and our locking it, and a third process makes a new one."""
    third = []

    def hold(descriptor: int) -> bool:
        if not third:
            (tmp_path / LOCK).unlink()
            third.append(locked(tmp_path, ["train"]))
            third[0].__enter__()
        return files.hold(descriptor)

    monkeypatch.setattr("rayscope.runs.lock.hold", hold)
    with pytest.raises(InUse), locked(tmp_path, ["evaluate"]):
        pass
    third[0].__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_planted_lock_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / LOCK).symlink_to("victim")
    with pytest.raises(OSError, match=LOCK), start(tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


def test_what_killed_writers_left_is_swept(tmp_path):
    place = tmp_path / "run" / "arms" / "real" / "dictionaries" / f".topk-1{PARTIAL}"
    place.mkdir(parents=True)
    (tmp_path / "run" / f".config.yaml-1{PARTIAL}").touch()
    (tmp_path / "run" / "mine").mkdir()
    (tmp_path / "run" / "mine" / ".notes").touch()
    with pytest.raises(ValueError, match="holds arms"), start(tmp_path / "run", command="study"):
        pass
    assert {path.name for path in (tmp_path / "run").rglob(".*")} == {".notes"}
