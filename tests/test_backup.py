"""overwrite=true: the old run stays as it was until there is another, whatever fails or is killed, and whenever."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rayscope.runs import Finished, run

OUTPUTS = ["table.csv", "dictionaries", "log.csv"]


class Killed(BaseException):
    pass


def start(folder: Path, k: int, overwrite: bool = False):
    return run("train", {"out": str(folder), "k": k, "overwrite": overwrite}, ["train", f"k={k}"], OUTPUTS)


def work(folder: Path, k: int) -> None:
    (folder / "table.csv").write_text(f"{k}\n")
    (folder / "dictionaries").mkdir()
    (folder / "dictionaries" / "weights").write_text(f"weights of {k}")


def make(folder: Path, k: int, overwrite: bool = False) -> None:
    with start(folder, k, overwrite):
        work(folder, k)


def begin_and_die(folder: Path) -> None:
    (folder / "log.csv").write_text("begun")
    raise Killed


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the half-written ones, which the next write replaces."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def set_aside(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*") if path.is_dir()]


@pytest.fixture
def old(tmp_path) -> Path:
    make(tmp_path / "old", 1)
    return tmp_path / "old"


def test_a_run_that_fails_before_it_wrote_anything_leaves_the_old_one_finished(old):
    before = contents(old)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such file"), start(old, 2, overwrite=True):
            raise ValueError("no such file")
        assert contents(old) == before
        with pytest.raises(Finished), start(old, 1):
            pass
    assert contents(old) == before


def test_a_run_that_succeeds_replaces_the_old_one(old):
    (old / "log.csv").write_text("the new run has none")
    make(old, 2, overwrite=True)
    assert set(contents(old)) == {
        "config.yaml", "environment.json", "finished.json", "table.csv", "dictionaries/weights",
    }  # fmt: skip
    assert (old / "dictionaries" / "weights").read_text() == "weights of 2"
    with pytest.raises(Finished), start(old, 2):
        pass


def test_a_run_that_fails_later_goes_on_and_the_old_one_is_kept_until_then(old, capsys):
    before = contents(old)
    with pytest.raises(Killed), start(old, 2, overwrite=True):
        begin_and_die(old)
    assert f"the run before is in {old / '.replaced'} until this one is finished" in capsys.readouterr().err
    assert contents(old / ".replaced") == before
    with pytest.raises(ValueError, match="another configuration"), start(old, 1):
        pass
    with (
        pytest.raises(ValueError, match="wrong"),
        start(old, 3, overwrite=True),
    ):  # the unfinished one is not lost either
        raise ValueError("wrong")
    assert contents(old / ".replaced") == before
    with start(old, 2):
        assert (old / "log.csv").read_text() == "begun"
        work(old, 2)
    assert set_aside(old) == []


def test_with_nothing_to_replace_nothing_is_left_behind(tmp_path):
    with pytest.raises(Killed), start(tmp_path / "deep" / "new", 1, overwrite=True):
        raise Killed
    assert list(tmp_path.iterdir()) == []


class Disk:
    """Counts the changes to it; from the given one on the process is dead, and none has any effect."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int):
        self.left = last
        for name in ("rename", "mkdir", "unlink", "rmdir"):
            patch.setattr(Path, name, self.counted(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", self.counted(shutil.rmtree))

    def counted(self, change):
        def act(*args, **kwargs):
            if self.left <= 0:
                raise Killed
            self.left -= 1
            return change(*args, **kwargs)

        return act


@pytest.mark.parametrize("fails", [False, True], ids=["replaced", "put back"])
def test_a_kill_between_any_two_changes_loses_nothing(old, tmp_path, monkeypatch, fails):
    before, seen = contents(old), set()
    for last in range(60):
        folder = Path(shutil.copytree(old, tmp_path / str(last)))
        try:
            with monkeypatch.context() as patch:
                disk = Disk(patch, last)
                with start(folder, 2, overwrite=True):
                    if fails:
                        raise ValueError("bad input")
                    work(folder, 2)
        except (Killed, ValueError):
            pass
        seen.add(outcome := self_repaired(folder, before))
        if disk.left:  # it ran to its end
            assert outcome == ("old" if fails else "new")
            break
    assert disk.left
    assert seen == ({"old"} if fails else {"old", "begun", "new"})


def self_repaired(folder: Path, before: dict[str, bytes]) -> str:
    """What the next start finds, after which the folder holds a whole run and nothing but that."""
    with pytest.raises((Finished, ValueError)) as stopped, start(folder, 1):
        raise AssertionError("the old run was lost")
    if stopped.type is Finished:
        assert contents(folder) == before
        found = "old"
    else:
        assert "k: 2 -> 1" in str(stopped.value)
        found = "new" if (folder / "finished.json").is_file() else "begun"
    if found == "begun":
        assert contents(folder / ".replaced") == before
        with start(folder, 2):
            pass
    assert set_aside(folder) == []
    return found


@pytest.mark.parametrize("begun", [False, True], ids=["before an output", "after one"])
def test_killed_process(old, begun):
    before = contents(old)
    program = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_backup as t\n"
        "with t.start(Path(sys.argv[2]), 2, overwrite=True) as folder:\n"
        f"    {'t.work(folder, 2)' if begun else 'pass'}; os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(Path(__file__).parent), str(old)])
    assert done.returncode == 9
    assert contents(old / ".replaced") == before
    assert self_repaired(old, before) == ("begun" if begun else "old")
