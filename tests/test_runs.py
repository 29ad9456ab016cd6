"""A run's folder: one process at a time, resumed only as itself, and nothing lost, whatever is damaged, killed or overwritten."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayscope import files, replacing, runs
from rayscope.files import PARTIAL
from rayscope.lock import LOCK, InUse, locked
from rayscope.runs import OUTPUTS, Finished, run


class Killed(BaseException):
    pass


def config(folder: Path, k: int = 1, overwrite: bool = False, **more) -> dict:
    training = {"log_every": 50, "checkpoint_seconds": 60, "snapshots": 0}
    return {
        "out": str(folder),
        "seed": 0,
        "overwrite": overwrite,
        "k": k,
        "threads": None,
        "training": training,
        **more,
    }


def start(folder: Path, k: int = 1, overwrite: bool = False, command: str = "train", **more):
    return run(command, config(folder, k, overwrite, **more), [command, f"k={k}"])


def work(folder: Path, k: int, command: str = "train") -> None:
    if command != "train":
        for name in OUTPUTS[command]:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(f"{command} {k}")
        return
    place = folder / "dictionaries" / "site" / "topk"
    place.mkdir(parents=True)
    for name in ("config.json", "weights.safetensors"):
        (place / name).write_text(f"{name} of {k}")
    (folder / "training.csv").write_text(f"{k}\n")
    (folder / "trained.json").write_text(json.dumps({"tokens": k, "dictionaries": ["site/topk"]}))


def make(folder: Path, k: int = 1, overwrite: bool = False, command: str = "train") -> None:
    with start(folder, k, overwrite, command):
        work(folder, k, command)


def begin_and_die(folder: Path) -> None:
    (folder / "checkpoint.ckpt").write_text("progress")
    raise Killed


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the half-written ones and the lock of the dead, which the next start removes."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def set_aside(folder: Path) -> list[Path]:
    return sorted(folder.parent.glob(f"{folder.name}.old-*"))


@pytest.fixture
def old(tmp_path) -> Path:
    make(tmp_path / "old", 1)
    return tmp_path / "old"


@pytest.fixture
def refused():
    """Starts that must be refused, with the reason; the folder is as it was."""

    def refuse(folder: Path, said: str, **options) -> str:
        before = contents(folder)
        with pytest.raises(ValueError, match=said) as stopped, start(folder, **options):
            raise AssertionError("it began")
        assert contents(folder) == before
        assert set_aside(folder) == []
        assert "\n" not in str(stopped.value)
        return str(stopped.value)

    return refuse


# one process at a time


HOLD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_runs
with test_runs.start(Path(sys.argv[2]), 1):
    print("here", flush=True)
    sys.stdin.readline()
    test_runs.work(Path(sys.argv[2]), 1)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that works in a folder until it is told to go on."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(Path(__file__).parent), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    yield folder, process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_told_who_works_there(holder, refused):
    folder, process = holder
    for command in OUTPUTS:
        for overwrite in (False, True):
            said = refused(folder, "is in use by process", command=command, overwrite=overwrite)
    assert (
        f"process {process.pid} on {os.uname().nodename} (rayscope train k=1); wait for it, or give another out="
        in said
    )
    with pytest.raises(InUse), runs.occupied(folder, ["report"]):
        pass
    process.communicate("go on\n")
    assert process.returncode == 0
    assert not (folder / LOCK).exists()
    with pytest.raises(Finished), start(folder, 1):
        pass


def test_a_killed_process_holds_nothing(holder):
    folder, process = holder
    process.kill()
    process.wait()
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


def test_a_lock_that_is_removed_before_it_is_ours_is_not_taken(tmp_path, monkeypatch):
    """The one before unlinks its file between our opening and our locking it, and a third process makes a new one."""
    third = []

    def hold(descriptor: int) -> bool:
        if not third:
            (tmp_path / LOCK).unlink()
            third.append(locked(tmp_path, ["train"]))
            third[0].__enter__()
        return files.hold(descriptor)

    monkeypatch.setattr("rayscope.lock.hold", hold)
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


# what is overwritten


def test_a_run_that_fails_before_it_wrote_anything_leaves_the_old_one_finished(old, capsys):
    before = contents(old)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such file"), start(old, 2, overwrite=True):
            raise ValueError("no such file")
        assert contents(old) == before
        assert set_aside(old) == []
    assert capsys.readouterr().err == ""
    with pytest.raises(Finished), start(old, 1):
        pass


def test_a_run_that_succeeds_replaces_the_old_one_of_which_nothing_is_lost(old, capsys):
    make(old, 5, command="evaluate")
    before = contents(old)
    (old / "notes.txt").write_text("mine")
    (old / "report").mkdir()
    (old / "report" / "index.html").write_text("my own page")
    make(old, 2, overwrite=True)
    (aside,) = set_aside(old)
    assert contents(aside) == before
    assert f"{old}: the run that was there is now {aside}" in capsys.readouterr().err
    assert (old / "dictionaries" / "site" / "topk" / "config.json").read_text() == "config.json of 2"
    assert (old / "notes.txt").read_text() == "mine"
    assert (old / "report" / "index.html").read_text() == "my own page"
    assert not (old / "evaluation.csv").exists()
    assert json.loads((old / "environment.json").read_text())["replaced"] == aside.name
    make(old, 3, overwrite=True)  # within the same second, too
    assert len(set_aside(old)) == 2


def test_a_page_of_ours_goes_with_its_run(old):
    (old / "report").mkdir()
    (old / "report" / "index.html").write_text("<title>old \u00b7 rayscope</title>")
    make(old, 2, overwrite=True)
    assert not (old / "report").exists()
    assert (set_aside(old)[0] / "report" / "index.html").is_file()


def test_redone_tables_alone_are_moved(old):
    make(old, 5, command="evaluate")
    before = contents(old)
    make(old, 6, overwrite=True, command="evaluate")
    moved = {*OUTPUTS["evaluate"], "evaluate.config.yaml", "evaluate.environment.json", "evaluate.finished.json"}
    assert set(contents(set_aside(old)[0])) == moved
    assert {name: data for name, data in contents(old).items() if name not in moved} == {
        name: data for name, data in before.items() if name not in moved
    }
    assert (old / "evaluation.csv").read_text() == "evaluate 6"


def test_tables_of_a_demo_are_replaced_and_those_of_nobody_are_not(tmp_path, old, refused):
    with start(tmp_path / "demo", command="demo"):
        work(tmp_path / "demo", 1, "train")
        for name in (*OUTPUTS["features"], *OUTPUTS["evaluate"]):
            (tmp_path / "demo" / name).write_text("the demo's")
    refused(tmp_path / "demo", "holds evaluation.csv of the run there; .* overwrite=true", command="evaluate")
    make(tmp_path / "demo", 2, overwrite=True, command="evaluate")
    assert set(contents(set_aside(tmp_path / "demo")[0])) == set(OUTPUTS["evaluate"])
    (old / "evaluation.csv").write_text("my own")
    for overwrite in (False, True):
        said = refused(
            old, "holds evaluation.csv, but no rayscope evaluate that wrote it", command="evaluate", overwrite=overwrite
        )
        assert "overwrite" not in said


@pytest.mark.parametrize(
    "name", ["report/index.html", "dictionaries", "training.csv", "config.yaml", "environment.json"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_files_are_never_moved(tmp_path, refused, name, overwrite):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.mkdir() if name == "dictionaries" else path.write_text("key: value")
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    said = refused(tmp_path / "mine", f"mine(/| holds ){name}", overwrite=overwrite, command="demo")
    assert "overwrite" not in said
    assert said.endswith("give another out=")
    with start(tmp_path / "mine", command="features"):  # which writes under none of these names
        pass


def test_a_link_to_another_disk_stays_one_and_the_files_stay_there(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    link = tmp_path / "runs" / "link"
    link.symlink_to(tmp_path / "disk", target_is_directory=True)
    make(link, 1)
    weights = (link / "dictionaries" / "site" / "topk" / "config.json").stat().st_ino
    make(link, 2, overwrite=True)
    assert link.is_symlink()
    (aside,) = set_aside(tmp_path / "disk")
    assert (aside / "dictionaries" / "site" / "topk" / "config.json").stat().st_ino == weights
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["link"]


@pytest.mark.parametrize("change", ["mkdir", "rename"])
def test_a_run_that_cannot_be_moved_stays(old, monkeypatch, refused, change):
    def fail(self, *args, **kwargs):
        raise OSError(18, "Invalid cross-device link", str(self))

    inner = Path.mkdir
    with monkeypatch.context() as patch:
        if change == "mkdir":
            patch.setattr(Path, "mkdir", lambda self, *a, **k: (fail if ".old-" in self.name else inner)(self, *a, **k))
        else:
            patch.setattr(Path, "rename", fail)
        refused(
            old,
            "the run there cannot be moved to .*invalid cross-device link.*; give another out=",
            k=2,
            overwrite=True,
        )
    assert not (old / replacing.JOURNAL).exists()
    with pytest.raises(Finished), start(old, 1):
        pass


def test_a_killed_run_that_overwrites_resumes_and_never_moves_its_own(old, capsys):
    before = contents(old)
    for _ in range(3):
        with pytest.raises(Killed), start(old, 2, overwrite=True):
            begin_and_die(old)
        assert (old / "checkpoint.ckpt").is_file()
        assert [contents(path) for path in set_aside(old)] == [before]
        assert f"the run that was there is now {set_aside(old)[0]}" in capsys.readouterr().err
    with start(old, 2):  # the same, though it does not say so
        assert (old / "checkpoint.ckpt").is_file()
        work(old, 2)
    with pytest.raises(ValueError, match=r"another configuration \(k: 2 -> 1\)"), start(old, 1):
        pass
    with start(old, 2, overwrite=True):  # finished: now it is redone
        assert not (old / "checkpoint.ckpt").exists()
        work(old, 2)
    assert len(set_aside(old)) == 2


def test_with_nothing_to_replace_nothing_is_left_behind(tmp_path):
    with pytest.raises(Killed), start(tmp_path / "deep" / "new", 1, overwrite=True):
        raise Killed
    assert list(tmp_path.iterdir()) == []


class Disk:
    """Counts the changes to it; from the given one on the process is dead, and none has any effect."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int):
        self.left = last
        for name in ("rename", "replace", "mkdir", "unlink", "rmdir", "open"):
            patch.setattr(Path, name, self.counted(getattr(Path, name), reads=name == "open"))
        patch.setattr(shutil, "rmtree", self.counted(shutil.rmtree))

    def counted(self, change, reads=False):
        def act(path, mode="r", *args, **kwargs):
            if reads and mode[0] == "r":
                return change(path, mode, *args, **kwargs)
            if self.left <= 0:
                raise Killed
            self.left -= 1
            return change(path, *(() if mode == "r" else (mode,)), *args, **kwargs)

        return act


@pytest.mark.parametrize("fails", [False, True], ids=["replaced", "put back"])
def test_a_kill_between_any_two_changes_loses_nothing(old, tmp_path, monkeypatch, fails):
    make(old, 5, command="evaluate")
    (old / "report").mkdir()
    (old / "report" / "index.html").write_text("<title>old \u00b7 rayscope</title>")
    (old / "report" / "notes").write_text("mine")
    before, seen = contents(old), set()
    for last in range(200):
        folder = Path(shutil.copytree(old, tmp_path / str(last) / "run"))
        try:
            with monkeypatch.context() as patch:
                disk = Disk(patch, last)
                with start(folder, 2, overwrite=True):
                    if fails:
                        raise ValueError("bad input")
                    work(folder, 2)
        except (Killed, ValueError):
            pass
        seen.add(outcome := after_a_kill(folder, before))
        if disk.left:  # it ran to its end
            assert outcome == ("old" if fails else "new")
            break
    assert disk.left
    assert seen == ({"old", "aside"} if fails else {"old", "aside", "begun", "new"})


def after_a_kill(folder: Path, before: dict[str, bytes]) -> str:
    """What the next start finds, once it has completed what was begun: the old run, whole, in one of two places."""
    try:
        with start(folder, 1):
            raise Killed
    except Finished:
        found = "old"
    except ValueError:  # of another configuration
        found = "new" if (folder / "finished.json").is_file() else "begun"
    except Killed:  # it began; its failure puts the old run back, if the killed one had said where that is
        found = "aside" if set_aside(folder) else "old"
    assert (folder / "report" / "notes").read_text() == "mine"
    assert not [path for path in folder.rglob(".*") if path.name in (LOCK, replacing.JOURNAL) or PARTIAL in path.name]
    if found == "old":
        assert contents(folder) == before
        assert set_aside(folder) == []
    else:
        (aside,) = set_aside(folder)
        assert contents(aside) == {name: data for name, data in before.items() if name != "report/notes"}
    return found


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(lambda x: json.dumps(x).encode())
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_journal_that_is_not_ours_moves_nothing(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    (folder / replacing.JOURNAL).write_bytes(content)
    with pytest.raises(ValueError, match="is not what rayscope wrote"):
        replacing.settle(folder)


@pytest.mark.parametrize(
    "plan",
    [
        {"from": "home", "to": "run", "names": [".ssh"]},
        {"from": "run", "to": "run.old-2026-11-25_10-33-05", "names": ["../home/.ssh"]},
        {"from": "run", "to": "../run.old-2026-11-25_10-33-05", "names": ["mine"]},
        {"from": "home", "to": "home.old-2026-11-25_10-33-05", "names": [".ssh"]},
    ],
)
def test_a_planted_journal_moves_nothing_elsewhere(tmp_path, plan):
    for place in (tmp_path / "home" / ".ssh", tmp_path / "run" / "mine"):
        place.mkdir(parents=True)
    (tmp_path / "run" / replacing.JOURNAL).write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="is not what rayscope wrote"), start(tmp_path / "run"):
        pass
    assert (tmp_path / "home" / ".ssh").is_dir()
    assert (tmp_path / "run" / "mine").is_dir()
