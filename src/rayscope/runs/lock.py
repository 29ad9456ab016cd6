"""One process at a time in a run's folder."""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rayscope.files import hold

LOCK = ".rayscope-lock"  # is there while a process works in the folder, or was killed in it


class InUse(ValueError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path, argv: Sequence[str]) -> Iterator[None]:
    """Holds the folder, which is made if need be, until the block ends. Raises InUse if another process holds it.

    The lock is the operating system's, on an open file: it goes with the process, however that ends.
    """
    path = folder / LOCK
    descriptor = acquire(path)
    try:
        holder = {"process": os.getpid(), "host": socket.gethostname(), "command": " ".join(["rayscope", *argv])}
        with suppress(OSError):  # a full disk: only what a refusal can say depends on it
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def acquire(path: Path) -> int:
    """The open, locked file. Another process may remove it between our opening and locking it;
    then we take the next.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except FileNotFoundError:
            if path.parent.is_dir():
                raise
            continue  # the folder was removed by the process that had made it
        try:
            if not hold(descriptor):
                raise InUse(f"{path.parent} is in use by {holder(path)}; wait for it, or give another out=")
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def holder(path: Path, longest: int = 60) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        command = found["command"]
        said = command if len(command) <= longest else command[:longest] + "..."
        return f"process {found['process']} on {found['host']} ({said})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
