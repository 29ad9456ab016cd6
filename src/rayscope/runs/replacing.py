"""overwrite=true: what a run made is moved to a folder alongside, OUT.old-DATE. Nothing is copied or deleted.

The moves are listed in a journal first, so that after a kill the next process completes them.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from rayscope.files import real, write_whole

JOURNAL = ".rayscope-moving.json"
OLD = re.compile(r"\.old-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")


def set_aside(folder: Path, names: Iterable[str]) -> Path:
    """Moves these files and folders of the folder, which may be a link to it, and says where to.

    Raises ValueError if they cannot be moved there; then none is.
    """
    folder = real(folder)
    date, number = time.strftime("%Y-%m-%d_%H-%M-%S"), 1
    target = folder.with_name(f"{folder.name}.old-{date}")
    while os.path.lexists(target):
        number += 1
        target = folder.with_name(f"{folder.name}.old-{date}-{number}")
    try:
        move(folder, folder, target, names)
    except OSError as error:
        if (folder / JOURNAL).exists():
            raise
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"{folder}: the run there cannot be moved to {target} ({reason}); give another out=") from None
    return target


def put_back(folder: Path, aside: Path) -> None:
    """The inverse. What is in the folder under the same names is replaced."""
    folder = real(folder)
    move(folder, aside, folder, list(entries(aside, folder)))


def entries(source: Path, target: Path) -> Iterator[str]:
    """The names of what is in the source; of a folder that both have, what is in it."""
    for path in sorted(source.iterdir()):
        if path.is_dir() and (target / path.name).is_dir():
            yield from (f"{path.name}/{name}" for name in entries(path, target / path.name))
        else:
            yield path.name


def move(folder: Path, source: Path, target: Path, names: Iterable[str]) -> None:
    write_whole(folder / JOURNAL, json.dumps({"from": source.name, "to": target.name, "names": list(names)}, indent=1))
    settle(folder)


def settle(folder: Path) -> Path | None:
    """Completes the moves that a kill interrupted, if one did, and says where to they went.

    An OSError before the first of them leaves everything as it was. Raises ValueError for a journal that is not ours:
    it can name only what is in the folder and in those next to it.
    """
    folder = real(folder)
    journal = folder / JOURNAL
    if not journal.is_file():
        return None
    try:
        plan = json.loads(journal.read_text(encoding="utf-8"))
        source, target, names = plan["from"], plan["to"], plan["names"]
        if not all(plain(name) and "/" not in name for name in (source, target)) or not all(map(plain, names)):
            raise ValueError("it names a place elsewhere")
        if folder.name not in (source, target) or not OLD.search(target if source == folder.name else source):
            raise ValueError("it is another folder's")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{journal} is not what rayscope wrote ({error}); look where the run's files are, then remove it"
        ) from None
    source, target = folder.with_name(source), folder.with_name(target)
    try:
        target.mkdir(exist_ok=True)
        for name in names:
            if os.path.lexists(source / name):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).rename(target / name)
    except OSError:
        if not target.is_dir() or not any(target.iterdir()):  # once something was moved, the rest must follow
            with suppress(FileNotFoundError):
                target.rmdir()
            journal.unlink()
        raise
    for name in names:
        if "/" in name:
            with suppress(OSError):
                (source / name).parent.rmdir()
    if source != folder:
        with suppress(OSError):
            source.rmdir()
    journal.unlink()
    return target


def plain(name: object) -> bool:
    return (
        isinstance(name, str)
        and not Path(name).is_absolute()
        and all(p not in ("", ".", "..") for p in name.split("/"))
    )


def is_replaced(path: Path) -> bool:
    """Is it, or does it lie in, a run that was set aside?"""
    return any(OLD.search(part) for part in path.parts)
