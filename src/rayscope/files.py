"""Files and folders written whole or not at all, and sweeping up what killed writers leave behind."""

import ctypes
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import platformdirs

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PARTIAL = ".rayscope-part"  # how the name of a file or folder ends while it is being written
BEFORE = ".rayscope-before"  # and that of a folder while another takes its place, where names cannot be swapped at once

DAY = 86_400.0  # seconds


def real(path: str | os.PathLike[str]) -> Path:
    """Absolute and without links. Unlike `Path.resolve`, which raises RuntimeError for links that lead in a circle."""
    return Path(os.path.realpath(path))


def cache_folder() -> Path:
    """$RAYSCOPE_CACHE, or the user's own: packed text is in its folder text,
    compiled C in native, the peers in peers.
    """
    return Path(os.environ.get("RAYSCOPE_CACHE") or platformdirs.user_cache_dir("rayscope"))


def write_whole(path: Path, text: str) -> None:
    """The text as UTF-8, line ends as they are."""
    with whole_file(path) as file:
        file.write(text.encode())


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the path's place, on disk, once the block ends.

    If the block fails, or the process is killed, what was there before stays. The temporary name, next to the path, is
    random and must be new, so a link that somebody planted is not followed.
    An OSError without a file's name gets the path's, so that whoever reports it can name the disk.
    """
    temporary = partial(path)
    with naming(path):
        try:
            with temporary.open("xb") as file:
                hold(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the path's place, on disk, once the block ends; see `whole_file`."""
    temporary = partial(path)
    with naming(path):
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            hold(descriptor)
            yield temporary
            for file in (each for each in temporary.rglob("*") if each.is_file()):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            if os.path.lexists(path):
                swap(temporary, path)
            else:
                temporary.rename(path)
        finally:
            os.close(descriptor)
            with suppress(OSError):
                remove(temporary)


def swap(new: Path, old: Path) -> None:
    """Each gets the other's name. Killed at any moment, the old folder, or the new one,
    is there or is put back by `sweep`.
    """
    if exchange(new, old):
        return
    before = old.with_name(f".{old.name}{BEFORE}")
    settle(before)
    old.rename(before)
    try:
        new.rename(old)
    except OSError:
        before.rename(old)
        raise
    before.rename(new)


def exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False if the system or the file system cannot."""
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        return ctypes.CDLL(None).renamex_np(*names, 2) == 0  # RENAME_SWAP
    if sys.platform == "linux" and (renameat2 := getattr(ctypes.CDLL(None), "renameat2", None)):
        return renameat2(-100, names[0], -100, names[1], 2) == 0  # AT_FDCWD twice, RENAME_EXCHANGE
    return False


def settle(before: Path) -> None:
    """Ends a swap that a kill interrupted: puts the old folder back, or removes it if the new one took its place."""
    old = before.with_name(before.name[1:].removesuffix(BEFORE))
    if os.path.lexists(old):
        remove(before)
    elif before.exists():
        before.rename(old)


def remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, age: float = 0.0, inside: Iterable[str] | None = None) -> list[Path]:
    """Removes, at any depth, what writers that are dead left in the folder; returns what was removed.

    A folder that one of them was about to replace is put back.
    age: seconds since it was last changed, at least; for folders in which other processes may be about to write.
    inside: look only in the folder itself and, at any depth, in these folders of it.
    """

    def left(end: str) -> list[Path]:
        pattern = f".*{end}"
        if inside is None:
            return sorted(folder.rglob(pattern))
        return sorted({*folder.glob(pattern), *(path for name in inside for path in (folder / name).rglob(pattern))})

    for before in left(BEFORE):
        with suppress(OSError):
            settle(before)
    swept = []
    for path in left(PARTIAL):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime >= age and not held(path):
                remove(path)
                swept.append(path)
    return swept


def partial(path: Path) -> Path:
    return path.with_name(f".{path.name[:40]}-{secrets.token_hex(4)}{PARTIAL}")


def hold(descriptor: int) -> bool:
    """Locks the open file or folder until it is closed or the process ends; False if another process holds it."""
    return lock(descriptor) is not False


def lock(descriptor: int) -> bool | None:
    """None: there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def held(path: Path) -> bool:
    """Does a living process hold it? Without locks, what was changed within a day counts as held."""
    if path.is_symlink():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        locked = lock(descriptor)
        return time.time() - os.fstat(descriptor).st_mtime < DAY if locked is None else not locked
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if (
            error.errno is not None and error.filename is None
        ):  # without a number it is a message, which a name would replace
            error.filename = str(path)
        raise
