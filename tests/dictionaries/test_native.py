"""A library that somebody else may have put into a cache folder is code of theirs: it is never loaded."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from rayscope.dictionaries.sparse import native
from rayscope.files import PARTIAL

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler here")


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.c").write_text("int planted = 1;")
    subprocess.run(["cc", "-shared", "-fPIC", folder / "planted.c", "-o", folder / "planted.so"], check=True)
    return (folder / "planted.so").read_bytes()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own cache folder; RAYSCOPE_CACHE is tmp_path / "cache". What is compiled is a line, which is quick."""
    (tmp_path / "home").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "source", lambda: b"int ours = 1;")
    return tmp_path / "home"


def plant(cache: Path, library: bytes) -> Path:
    path = cache / "native" / native.name_of(["cc"])
    for folder in (cache, path.parent):
        folder.mkdir(mode=0o755)
    path.write_bytes(library)
    path.chmod(0o755)
    return path


def loads_planted() -> bool:
    loaded = native.found(["cc"])
    assert hasattr(loaded, "planted") != hasattr(loaded, "ours")
    return hasattr(loaded, "planted")


def test_a_library_of_the_users_own_is_loaded(planted: bytes, tmp_path: Path, home: Path):
    """Or the tests below would pass whatever is loaded."""
    plant(tmp_path / "cache", planted)
    assert loads_planted()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
@pytest.mark.parametrize("which", ["", "native"])
def test_a_folder_that_others_may_write_to_is_not_used(
    planted: bytes, tmp_path: Path, home: Path, which: str, mode: int
):
    path = plant(tmp_path / "cache", planted)
    (tmp_path / "cache" / which).chmod(mode)
    assert not loads_planted()
    assert path.read_bytes() == planted  # left alone
    (built,) = (home / "rayscope-native").iterdir()
    assert built.name == path.name
    assert stat.S_IMODE(built.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("fault", ["group may write", "others may write", "a link", "a link to a folder", "a pipe"])
def test_a_file_that_others_may_have_written_is_built_again(planted: bytes, tmp_path: Path, home: Path, fault: str):
    path = plant(tmp_path / "cache", planted)
    elsewhere = tmp_path / "elsewhere"
    if fault.endswith("may write"):
        path.chmod(0o775 if fault.startswith("group") else 0o757)
    elif fault == "a link":
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    elif fault == "a pipe":
        path.unlink()
        os.mkfifo(path, 0o700)
    else:
        path.parent.rename(elsewhere)
        path.parent.symlink_to(elsewhere)
    assert not loads_planted()
    built = home / "rayscope-native" / path.name if fault == "a link to a folder" else path
    assert stat.S_ISREG(built.lstat().st_mode)
    assert stat.S_IMODE(built.lstat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
@pytest.mark.parametrize("which", ["", "native", "file"])
def test_what_another_user_owns_is_not_loaded(planted: bytes, tmp_path: Path, home: Path, which: str):
    path = plant(tmp_path / "cache", planted)
    os.chown(path if which == "file" else tmp_path / "cache" / which, 65534, 65534)
    assert not loads_planted()


@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_whatever_the_umask_it_is_built_once_if_there_is_a_place(tmp_path: Path, home: Path, monkeypatch, mode: int):
    """RAYSCOPE_CACHE is made under a umask that lets the group write: not to be trusted."""
    home.chmod(mode)
    builds = []
    build = native.build
    monkeypatch.setattr(native, "build", lambda command, target: (builds.append(target), build(command, target)))
    before = os.umask(0o002)
    try:
        assert not loads_planted()
        assert not loads_planted()
    finally:
        os.umask(before)
    if mode == 0o700:
        assert builds == list(home.rglob("*.so"))
    else:
        assert len(builds) == 2
        assert not any(path.parent.exists() for path in builds)
    assert list((tmp_path / "cache").rglob("*.so")) == []


def test_what_a_killed_build_left_is_swept(tmp_path: Path, home: Path):
    left = tmp_path / "cache/native" / f".build-x{PARTIAL}"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    native.found(["cc"])
    assert [path.suffix for path in left.parent.iterdir()] == [".so"]
