"""rayscope commands in forks of one warm interpreter, killed where asked, and what they leave behind, compared.

A fork starts in milliseconds with everything imported, so a table of hundreds of kills takes minutes.
"""

import faulthandler
import hashlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
TIMES = re.compile(rb"\d{4}-\d\d-\d\d[ T_]\d\d[:-]\d\d[:-]\d\d|\d+(\.\d+)? s(econds)?\b")
UNCOMPARED = ("environment.json", "finished.json", "encode_seconds.csv")  # times and versions, not results


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (minus the signal that ended it), what it said, what it did to files."""

    code: int
    said: str
    operations: list[str] = field(default_factory=list)

    @property
    def last(self) -> str:
        return (self.said.strip().splitlines() or [""])[-1]


class Watch:
    """Counts the changes that this process makes to files below `folders`; at change number `last` it acts.

    An audit event comes before the operation it names, so acting at change n leaves what change n - 1 made.
    """

    def __init__(self, folders: Sequence[Path], journal: Path, last: int | None, act: Callable[[], None]):
        self.folders, self.last, self.act, self.count = folders, last, act, 0
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple) -> None:
        if event not in OPERATIONS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            return
        path = Path(os.fsdecode(arguments[0]))
        if not path.is_absolute():
            below = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
            path = (Path(f"/proc/self/fd/{below}").readlink() if below >= 0 else Path.cwd()) / path
        folder = next((folder for folder in self.folders if path.is_relative_to(folder)), None)
        if folder is None:
            return
        os.write(self.journal, f"{event.removeprefix('os.')} {plain(str(path.relative_to(folder.parent)))}\n".encode())
        if self.count == self.last:
            self.act()
        self.count += 1


def plain(name: str) -> str:
    """A file's name without what differs from run to run:
    `.a.csv-0f3c2d1b.rayscope-part` -> `.a.csv-*.rayscope-part`.
    """
    name = re.sub(r"-[0-9a-f]{8}(\.rayscope-part)", r"-*\1", name)
    return re.sub(r"\b[0-9a-f]{16,}\b", "*", name)


def perform(
    argv: Sequence[str],
    here: Path,
    *,
    watch: Sequence[Path] = (),
    at: int | None = None,
    act: Callable[[], None] | None = None,
    after: float | None = None,
    sent: int = signal.SIGKILL,
    prepare: Callable[[], None] | None = None,
    limit: float = 300,
) -> Ended:
    """`rayscope *argv` in a fork that starts in the folder `here`.

    watch: folders in which file operations are counted; at: before which of them `act` is called (by default the
    process kills itself); after: seconds after which the signal `sent` is sent to it; prepare: called in the fork
    first.
    """
    journal, output = here.parent / "journal", here.parent / "output"
    here.mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        run(argv, here, output, journal, watch, at, act or killed, prepare)
    timer = (
        threading.Timer(after, stop, (child, sent))
        if after is not None
        else threading.Timer(limit, stop, (child, signal.SIGABRT))  # says where it hangs
    )
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    timer.join()
    said = output.read_text(encoding="utf-8", errors="surrogateescape")
    operations = journal.read_text(encoding="utf-8").splitlines() if watch else []
    return Ended(os.waitstatus_to_exitcode(status), said, operations)


def run(argv, here, output, journal, watch, at, act, prepare) -> None:
    """In the fork; never comes back."""
    code = 70
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(file, descriptor)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        faulthandler.enable(2)
        os.chdir(here)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        if prepare is not None:
            prepare()
        if watch:
            Watch(watch, journal, at, act)
        code = called(argv)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def called(argv: Sequence[str]) -> int:
    import traceback

    from rayscope.cli.command_line import main

    try:
        main(list(argv))
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def stop(process: int, sent: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, sent)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_soon(seconds: float) -> Callable[[], None]:
    """Killed so long after the operation begins: in the middle of a write, where it takes as long."""
    return lambda: signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM, unhandled, ends a process like a kill


def full_disk(size: int) -> Callable[[], None]:
    """No file may grow beyond `size` bytes: writes fail as on a full disk, at any write, in C too."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def contents(*folders: Path) -> dict[str, str]:
    """{file: hash} of what a command made: the result, whatever the time."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.endswith(UNCOMPARED):
                content = path.read_bytes()
                if path.suffix == ".html":
                    content = TIMES.sub(b"", content)
                found[str(path.relative_to(folder.parent))] = hashlib.sha256(content).hexdigest()
            elif path.is_dir() and not any(path.iterdir()):
                found[f"{path.relative_to(folder.parent)}/"] = "an empty folder"
    return found


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    return [
        *(f"missing {name}" for name in wanted if name not in found),
        *(f"left {plain(name)}" for name in found if name not in wanted),
        *(f"other {name}" for name in wanted if name in found and found[name] != wanted[name]),
    ]


class Place:
    """The folder `here` in which commands start, with `model`, `prose.txt` and the run `out`; states of it;
    a cache of packed text.
    """

    def __init__(self, work: Path):
        self.here, self.cache, self.states = work / "here", work / "cache", work / "states"
        self.out = self.here / "out"
        self.wanted: dict[str, dict[str, str]] = {}
        self.before: dict[str, str] = {}

    def copied(self) -> "Place":
        """Another place with the same states, and a cache of its own that this process uses from now on."""
        other = Place(Path(tempfile.mkdtemp(dir=self.here.parent, prefix="worker-")))
        shutil.copytree(self.states, other.states, symlinks=True)
        if self.cache.exists():
            shutil.copytree(self.cache, other.cache)
        other.wanted = dict(self.wanted)
        os.environ["RAYSCOPE_CACHE"] = str(other.cache)
        return other

    def keep(self, state: str) -> None:
        """What is here now, by this name."""
        shutil.rmtree(self.states / state, ignore_errors=True)
        shutil.copytree(self.here, self.states / state, symlinks=True)
        self.wanted[state] = self.results()

    def restore(self, state: str) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.states / state, self.here, symlinks=True)

    def grow_old(self) -> None:
        """An hour goes by for the cache.
        Half-written folders are swept there once nobody can be about to write them.
        """
        for path in self.cache.glob("*/.*"):
            os.utime(path, (0, path.stat().st_mtime - 3600))

    def results(self, cached: bool = False) -> dict[str, str]:
        """What the command made, and the run that it set aside: the first, since one that is finished is redone."""
        found = contents(self.out, *([self.cache] if cached else []))
        for folder in sorted(self.here.glob("out.old-*"))[:1]:
            found |= {f"set aside{name.removeprefix(folder.name)}": hashed for name, hashed in contents(folder).items()}
        return found

    def like(self) -> str:
        """What the run is like, if it is bitwise what an undisturbed one leaves."""
        there, states = contents(self.out), {"trained": "train", "evaluated": "evaluate", "demo": "demo"}
        same = [command for state, command in states.items() if there == self.wanted.get(state)]
        return f"as after an undisturbed {same[0]}, bitwise" if same else ""


def must(ended: Ended) -> Ended:
    if ended.code:
        raise RuntimeError(f"a line that should run failed ({ended.code}): {ended.said}")
    return ended


def warm() -> None:
    """Imports what commands import and compiles what they compile, on one thread: a pool of threads does not survive a
    fork, neither OpenMP's nor that of tokenizers (whose own guard is off once TOKENIZERS_PARALLELISM is true)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    torch.set_num_threads(1)
    import lightning.pytorch  # noqa: F401
    import pandas  # noqa: F401
    import transformers  # noqa: F401

    from rayscope.dictionaries.sparse import native

    native.library()
