"""Whole or not at all: what is there before a failure or a kill is there after it,
and what a killed writer left is swept.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayscope.files import PARTIAL, exchange, partial, sweep, whole_file, whole_folder, write_whole


def test_a_file_that_fails_half_way_leaves_the_one_before(tmp_path):
    path = tmp_path / "table.csv"
    write_whole(path, "before\r\n")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_bytes() == b"before\r\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_fails_half_way_leaves_the_one_before(tmp_path):
    path = tmp_path / "rays"
    with whole_folder(path) as folder:
        (folder / "weights").write_text("before")
    with pytest.raises(ZeroDivisionError), whole_folder(path) as folder:
        (folder / "weights").write_text("half" * (1 // (folder == path)))
    assert (path / "weights").read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with whole_folder(path) as folder:
        (folder / "other").write_text("after")
    assert [file.name for file in path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("at_once", "states"), [(True, ["before", "after"]), (False, ["before", "before", "after", "after"])]
)
def test_a_folder_that_is_replaced_survives_a_kill_at_any_step(tmp_path, monkeypatch, at_once, states):
    """A copy of everything is taken before each change of a name, as a kill would leave it, and swept."""
    copies: list[Path] = []

    def copied(change):
        def copy_first(*names):
            copies.append(Path(shutil.copytree(tmp_path / "run", tmp_path / f"copy{len(copies)}")))
            return change(*names)

        return copy_first

    path = tmp_path / "run" / ("rays" * 12)
    path.mkdir(parents=True)
    (path / "weights").write_text("before")
    if at_once:
        monkeypatch.setattr("rayscope.files.exchange", copied(exchange))
    else:
        monkeypatch.setattr("rayscope.files.exchange", lambda *_: False)
        monkeypatch.setattr(Path, "rename", copied(Path.rename))
    with whole_folder(path) as folder:
        (folder / "weights").write_text("after")
    monkeypatch.undo()
    copies.append(tmp_path / "run")
    for copy in copies:
        sweep(copy)
        assert [each.name for each in copy.iterdir()] == [path.name]
    assert [(copy / path.name / "weights").read_text() for copy in copies] == states


def test_a_link_to_a_folder_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights").write_text("theirs")
    (tmp_path / "rays").symlink_to(tmp_path / "theirs")
    with whole_folder(tmp_path / "rays") as folder:
        (folder / "weights").write_text("ours")
    assert {path.name: (path / "weights").read_text() for path in tmp_path.iterdir()} == {
        "theirs": "theirs", "rays": "ours"
    }  # fmt: skip


def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    victim, target = tmp_path / "victim", tmp_path / "config.yaml"
    victim.write_text("mine")
    planted = partial(target)
    planted.symlink_to(victim)
    monkeypatch.setattr("rayscope.files.partial", lambda path: planted)
    with pytest.raises(FileExistsError):
        write_whole(target, "theirs")
    assert victim.read_text() == "mine"


def test_permissions_are_those_of_any_new_file(tmp_path):
    write_whole(tmp_path / "whole", "")
    (tmp_path / "plain").touch()
    with whole_folder(tmp_path / "folder"):
        pass
    (tmp_path / "plain_folder").mkdir()
    for ours, plain in (("whole", "plain"), ("folder", "plain_folder")):
        assert (tmp_path / ours).stat().st_mode == (tmp_path / plain).stat().st_mode


def test_an_error_without_a_name_gets_the_file_it_was_about(tmp_path):
    with pytest.raises(OSError, match=r"no space.*table\.csv"), whole_file(tmp_path / "table.csv"):
        raise OSError(28, "no space")


def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from rayscope.files import whole_file, whole_folder\n"
        "with whole_file(Path(sys.argv[1]) / 'a.csv') as file, whole_folder(Path(sys.argv[1]) / 'rays') as folder:\n"
        "    (folder / 'weights').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    deep = tmp_path / "snapshots" / "256"
    deep.mkdir(parents=True)
    (deep / ".mine").write_text("of the user")
    with subprocess.Popen([sys.executable, "-c", program, str(deep)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        assert sweep(tmp_path) == []
        writer.kill()
    left = {path for path in deep.iterdir() if path.name.endswith(PARTIAL)}
    assert len(left) == 2
    assert sweep(tmp_path, age=time.time()) == []
    assert set(sweep(tmp_path)) == left
    assert [path.name for path in deep.iterdir()] == [".mine"]


def test_without_locks_only_what_is_a_day_old_is_swept(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    for name, hours in (("new", 1), ("old", 25)):
        path = tmp_path / f".{name}{PARTIAL}"
        path.touch()
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    assert [path.name for path in sweep(tmp_path)] == [f".old{PARTIAL}"]
