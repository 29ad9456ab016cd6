"""What the operating system says of a file, in words:
which path, which option names it, and which disk is really full.
"""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from rayscope.files import PARTIAL

FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE, MUCH = 2**20, 2**30  # bytes: less is a full disk; more is no longer the state in which a write failed
WORDS = {
    errno.EEXIST: "a file of that name is there",
    errno.EFBIG: "the file would be larger than is allowed there",
    errno.EISDIR: "it is a folder",
    errno.ELOOP: "it is a link, or links that lead in a circle",
    errno.EMFILE: "too many files are open",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "part of that path is a file, not a folder",
    errno.EROFS: "that disk is read-only",
}


def in_words(error: OSError, places: Mapping[str, Path], resumes: bool = False) -> str:
    """One line that begins with the path, or with the option that names it.

    places: the folders that a command writes in, by option. resumes: whether the same command would go on where it was.
    """
    if error.errno in FULL:
        path, option = full(error, places)
        free = room(path)
        size = (
            f", {free / 2**20:.1f} MB free" if error.errno != errno.EDQUOT and free is not None and free < MUCH else ""
        )
        quota = "your quota is used up on" if error.errno == errno.EDQUOT else "no space left on"
        other = "" if option is None else f" ({option}={places[option]}{size})"
        then = "the same command resumes" if resumes else "run the same command again"
        return f"{quota} the disk of {path}{other}; free some, then {then}"
    reason = WORDS.get(error.errno or 0) or (error.strerror or "").lower()
    named = path_of(error)
    if not reason or named is None:
        return reason or str(error)
    for option, place in places.items():
        if named == place or named in place.parents:
            return f"{option}={place}: the folder cannot be used ({named}: {reason})"
    second = f" -> {os.fsdecode(error.filename2)}" if error.filename2 else ""
    return f"{named}{second}: {reason}"


def full(error: OSError, places: Mapping[str, Path]) -> tuple[Path, str | None]:
    """The path whose disk is full, and the option that it belongs to.

    A library may name no file, or the one that it copies to: the file named, unless there is room and none elsewhere.
    """
    named = path_of(error)
    candidates = [(named, option_of(named, places))] if named else []
    candidates += [(place, option) for option, place in places.items()]
    for path, option in candidates:
        free = room(path)
        if free is not None and free < LITTLE:
            return path, option
    if named or not candidates:  # what filled it is gone again
        return candidates[0] if candidates else (Path.cwd(), None)
    return min(candidates, key=lambda one: room(one[0]) or 0)


def option_of(path: Path, places: Mapping[str, Path]) -> str | None:
    return next((option for option, place in places.items() if path.absolute().is_relative_to(place.absolute())), None)


def path_of(error: OSError) -> Path | None:
    """The file that the error names; if that has the name of one half-written, the one that it was to be."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    path = Path(os.fsdecode(error.filename))
    return path.with_name(path.name[1:].rpartition("-")[0]) if path.name.endswith(PARTIAL) else path


def room(path: Path) -> int | None:
    """Bytes that are free for the user where the path is, or would be; 0 if no more files may be made there."""
    there = next((place for place in (path, *path.absolute().parents) if place.exists()), None)
    try:
        disk = os.statvfs(there or path)
    except (OSError, AttributeError):
        return None
    return 0 if disk.f_files and not disk.f_favail else disk.f_bavail * disk.f_frsize
