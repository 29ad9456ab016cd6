"""overwrite=true: only what a run made is moved, and nothing is lost, whatever fails or is killed, and whenever."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import Killed, begin_and_die, contents, make, set_aside, start, work
from rayscope.files import PARTIAL
from rayscope.report.studies import finished
from rayscope.runs import replacing
from rayscope.runs.lock import LOCK
from rayscope.runs.run import OUTPUTS, Finished


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


def test_a_study_that_was_replaced_is_not_shown_in_reports(tmp_path):
    verdict = {
        "study": "s",
        "question": "q",
        "size": "demo",
        "model": "m",
        "seeds": [0],
        "budgets": [],
        "pass": None,
        "converged": None,
        "predictions": {},
    }

    def conduct(size: str, overwrite: bool = False) -> None:
        with start(tmp_path / "s", 1, overwrite, "study"):
            work(tmp_path / "s", 1, "study")
            (tmp_path / "s" / "verdict.json").write_text(json.dumps({**verdict, "size": size}))

    conduct("night")
    (before,) = finished(tmp_path)
    conduct("demo", overwrite=True)
    (now,) = finished(tmp_path)
    assert "size night" in before["lines"][0]
    assert "size demo" in now["lines"][0]
    (aside,) = set_aside(tmp_path / "s")
    assert (aside / "verdict.json").is_file()


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


def test_a_move_that_a_kill_interrupted_is_completed_by_the_next_command_and_said(old, monkeypatch, capsys):
    before = contents(old)
    inner = Path.rename

    def rename(self, target):
        if self.name == "dictionaries":
            raise Killed
        return inner(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed), start(old, 2, overwrite=True):
            pass
    assert (old / "dictionaries").is_dir()
    assert not (old / "config.yaml").exists()
    capsys.readouterr()
    with start(old, 1, command="features"):
        pass
    (aside,) = set_aside(old)
    assert contents(aside) == before
    assert (
        f"{old}: the run that was there is now {aside}; the one that was to replace it was killed"
        in capsys.readouterr().err
    )


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


@pytest.mark.slow
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


@pytest.mark.slow
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
