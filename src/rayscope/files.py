"""Files and folders written whole or not at all, and sweeping up what killed writers leave behind."""

import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PARTIAL = ".rayscope-part"  # how the name of a file or folder ends while it is being written

DAY = 86_400.0  # seconds


def real(path: str | os.PathLike[str]) -> Path:
    """Absolute and without links. Unlike `Path.resolve`, which raises RuntimeError for links that lead in a circle."""
    return Path(os.path.realpath(path))


def write_whole(path: Path, text: str) -> None:
    """The text as UTF-8, line ends as they are."""
    with whole_file(path) as file:
        file.write(text.encode())


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the path's place, on disk, once the block ends; if the block fails, nothing changes.

    Its temporary name, beside the path's, is random and must be new, so a link that somebody planted is not followed.
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
    temporary, before = partial(path), partial(path)
    with naming(path):
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            hold(descriptor)
            yield temporary
            for file in (each for each in temporary.rglob("*") if each.is_file()):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            if path.exists():
                path.rename(before)
            try:
                temporary.rename(path)
            except OSError:
                if before.exists():
                    before.rename(path)
                raise
        finally:
            os.close(descriptor)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(before, ignore_errors=True)


def sweep(folder: Path, age: float = 0.0, inside: Iterable[str] | None = None) -> list[Path]:
    """Removes, at any depth, what writers that are dead left in the folder; gives back what was removed.

    age: seconds since it was last changed, at least; for folders in which other processes may be about to write.
    inside: look only in the folder itself and, at any depth, in these folders of it.
    """
    pattern = f".*{PARTIAL}"
    if inside is None:
        found = set(folder.rglob(pattern))
    else:
        found = set(folder.glob(pattern)).union(*((folder / name).rglob(pattern) for name in inside))
    swept = []
    for path in sorted(found):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime >= age and not held(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
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
