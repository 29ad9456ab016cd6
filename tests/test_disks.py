"""The line for an OSError: the path first, the option that names it, and the disk that is really full."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayscope.disks import in_words
from rayscope.runs.run import resumes

MB = 2**20


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    found = {"out": tmp_path / "runs" / "mine", "cache": tmp_path / "cache", "TMPDIR": tmp_path / "tmp"}
    for path in (tmp_path / "runs", *list(found.values())[1:]):
        path.mkdir()
    return found


@pytest.fixture
def free(monkeypatch):
    """Says how many bytes are free below a folder; elsewhere there is room."""
    rooms: dict[Path, int] = {}

    def statvfs(path):
        room = next((size for place, size in rooms.items() if Path(path).is_relative_to(place)), 100 * MB)
        return SimpleNamespace(f_bavail=room, f_frsize=1, f_files=100, f_favail=0 if room < 0 else 50)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return rooms


def no_space(path: Path | None = None, number: int = errno.ENOSPC) -> OSError:
    return OSError(number, os.strerror(number), *([str(path)] if path else []))


@pytest.mark.parametrize("full", ["out", "cache", "TMPDIR"])
@pytest.mark.parametrize("named", ["out", "cache", None])
@pytest.mark.parametrize("left", [0, MB // 2, -1], ids=["no bytes", "few bytes", "no more files"])
def test_the_disk_that_is_full_is_named(places, free, full, named, left):
    free[places[full].parent if full == "out" else places[full]] = left
    path = places[named] / "file" if named else None
    said = in_words(no_space(path), places)
    expected = path if named == full else places[full]
    size = f"{max(left, 0) / MB:.1f}"
    assert said == (
        f"no space left on the disk of {expected} ({full}={places[full]}, {size} MB free); free some, "
        "then run the same command again"
    )


def test_a_file_whose_disk_has_room_again_is_named_still(places, free):
    """A write that fails takes its half-written file away."""
    path = places["cache"] / "text" / "train.tokens"
    assert in_words(no_space(path), places).startswith(
        f"no space left on the disk of {path} (cache={places['cache']}, "
    )


def test_with_no_file_and_room_everywhere_the_fullest_is_named(places, free):
    free[places["cache"]] = 2 * MB
    assert in_words(no_space(), places).startswith(f"no space left on the disk of {places['cache']} (")


def test_a_quota_is_said(places):
    said = in_words(no_space(places["cache"] / "x", errno.EDQUOT), places)
    assert said.startswith(f"your quota is used up on the disk of {places['cache'] / 'x'} (cache={places['cache']})")


def test_whether_the_command_resumes_is_true(places, tmp_path):
    assert in_words(no_space(), places, resumes=True).endswith("then the same command resumes")
    out = tmp_path / "run"
    arm = out / "arms" / "real"
    arm.mkdir(parents=True)
    assert not resumes("train", str(out))
    assert not resumes("study", str(out))
    (arm / "trained.json").touch()
    assert resumes("study", str(out))
    (out / "checkpoint-before.ckpt").touch()
    assert resumes("demo", str(out))
    assert not resumes("evaluate", str(out))  # which measures from the beginning
    assert not resumes("report", str(out))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "permission denied"), (errno.EROFS, "that disk is read-only"),
        (errno.ENOENT, "no such file or folder"), (errno.ENOTDIR, "part of that path is a file, not a folder"),
        (errno.EIO, os.strerror(errno.EIO).lower()),
    ],
)  # fmt: skip
def test_other_errors_begin_with_the_path(places, number, words):
    inside = places["out"] / "config.yaml"
    assert in_words(no_space(inside, number), places) == f"{inside}: {words}"
    above = places["out"].parent
    assert in_words(no_space(above, number), places) == (
        f"out={places['out']}: the folder cannot be used ({above}: {words})"
    )
    assert in_words(no_space(None, number), places) == words


def test_a_library_error_without_a_number_is_kept(places):
    assert in_words(OSError("We couldn't connect to the hub"), places) == "We couldn't connect to the hub"
    assert in_words(OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), places) == (
        "a -> b: invalid cross-device link"
    )
