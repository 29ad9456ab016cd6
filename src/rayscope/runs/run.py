"""A run's folder: one configuration and one process at a time, resumed after a kill, kept when it is overwritten."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from rayscope.console import say
from rayscope.dictionaries import fingerprint
from rayscope.files import real, sweep, write_whole
from rayscope.records import Records, describe, differences, digest, made_by, read_environment, say_otherwise_begun
from rayscope.runs import replacing
from rayscope.runs.lock import InUse, locked
from rayscope.runs.settings import dictionaries_folder
from rayscope.training.checkpoint import BEFORE, CHECKPOINT, remove_checkpoints
from rayscope.training.trained import TRAINED, check

PAGE = "report/index.html"
DICTIONARIES = (CHECKPOINT, BEFORE, "training.csv", "snapshots", "dictionaries", TRAINED, "wandb.json")
MEASURED = {  # by the commands that add to a run
    "evaluate": ("evaluation.csv", "latent_density.csv", "encode_seconds.csv"),
    "features": ("token_features.csv", "contexts.json"),
}
ELSEWHERE = "evaluation_elsewhere.csv"  # of a demo that names text of another kind
FOUND = ("table.csv", "figure.svg", "verdict.json")  # by a study, the verdict last
OUTPUTS = {  # by command, what it writes in its folder apart from its records
    "demo": (*DICTIONARIES, *MEASURED["features"], *MEASURED["evaluate"], ELSEWHERE, PAGE),
    "train": DICTIONARIES,
    "study": ("budgets", "arms", *FOUND),
    **MEASURED,
}


class Finished(Exception):
    """This very run is done already."""


class Unfinished(Exception):
    """The command did the part of the run that it was asked for."""


def out_folder(out: object) -> Path:
    """The folder that `out=` names, `~` being the user's own.
    Raises ValueError for none: `out=$UNSET` is not this folder.
    """
    if out is None or not str(out).strip():
        raise ValueError(
            f"out={'null' if out is None else out}: no folder; give one, such as out=runs/mine, or out=. for this"
        )
    if isinstance(out, bool) or not isinstance(out, str | int):
        raise ValueError(f"out={out}: not the name of a folder; give one, such as out=runs/mine")
    return Path(os.path.expanduser(str(out)))  # noqa: PTH111 (leaves a ~ of nobody)


@contextmanager
def run(command: str, config: dict[str, Any], argv: Sequence[str]) -> Iterator[Path]:
    """The run's folder, locked, to work in. Its environment and configuration are written first,
    finished.json at the end.

    They are environment.json and config.yaml of the command that makes a run (demo, train, study); the names of one
    that adds to it begin with the command's. With overwrite, what was there is moved to OUT.old-DATE. A run that fails
    before it has written any output leaves everything as it was. Raises Finished if the same run is done, ValueError if
    the folder holds another, or other files under the names that this one writes.
    """
    records = records_of(folder := Path(config["out"]), command)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with ExitStack() as stack, ExitStack() as alone:
        stack.callback(remove_empty, made)
        try:
            alone.enter_context(occupied(folder, argv))
        except (InUse, OSError):  # someone reads what is finished, or it lies on a disk that is read-only
            if not config.get("overwrite") and is_whole(command, records, config):
                raise finished(command, folder) from None
            raise
        environment, resumed, replaced = begin(command, records, config, argv)
        started = time.monotonic()
        try:
            if resumed:
                write_whole(records.environment, json.dumps(environment, indent=2))
            else:  # config.yaml last: it is never without its own environment.json
                text = yaml.safe_dump(config, sort_keys=False)
                records.config.unlink(missing_ok=True)
                write_whole(records.environment, json.dumps({**environment, "config": digest(text.encode())}, indent=2))
                write_whole(records.config, text)
            if config.get("part"):
                alone.close()  # other parts work in the folder too; each of their trainings is locked
            yield folder
        except BaseException:
            if not begun(folder, command):
                for path in (
                    records.finished,
                    records.config,
                    records.environment,
                ):  # the last one last, as it was first
                    path.unlink(missing_ok=True)
                if replaced:
                    replacing.put_back(folder, replaced)
                    replaced = None
            raise
        else:
            write_whole(records.finished, json.dumps({"seconds": round(time.monotonic() - started, 1)}))
        finally:
            if replaced:
                say(f"{folder}: the run that was there is now {replaced}")


@contextmanager
def occupied(folder: Path, argv: Sequence[str]) -> Iterator[None]:
    """Locks the folder for the block. First, moves that a kill interrupted are completed,
    and half-written files removed.
    """
    with locked(folder, argv):
        moved_to = replacing.settle(folder)
        if moved_to and moved_to != real(folder):
            say(f"{folder}: the run that was there is now {moved_to}; the one that was to replace it was killed")
        sweep(folder, inside=("arms", "budgets", "dictionaries", "report", "snapshots"))
        yield


def begin(
    command: str, records: Records, config: dict[str, Any], argv: Sequence[str]
) -> tuple[dict[str, Any], bool, Path | None]:
    """(environment, whether a run is resumed, where the one is that it replaces), once nothing is in the way.

    Raises as `run` does.
    """
    folder, overwrite = records.folder, bool(config.get("overwrite"))
    environment = describe(argv, str(config.get("device")))
    resumed, replaced = False, None
    if os.path.lexists(records.config):
        old, before = records.read()
        difference, done = unlike(command, old, before, config), is_whole(command, records, config)
        if done and not overwrite:
            if TRAINED in OUTPUTS[command]:
                remove_checkpoints(folder)  # which a kill just before the end left
            raise finished(command, folder)
        is_there = begun(folder, made_by(before)) or os.path.lexists(records.finished)
        overwriting = old["overwrite"] and not records.finished.is_file()  # resumes under the same command
        resumed = is_there and not difference and (overwriting or not overwrite)
        if is_there and not resumed and not overwrite:
            raise ValueError(f"{folder} holds {difference}; give another out=, or overwrite=true to redo it")
        overwrite = overwrite and is_there
        replaced = replaced_by(folder, before)
        if resumed:
            gone = [name for name in last_outputs(folder, command, config) if not (folder / name).is_file()]
            if gone and records.finished.is_file():
                say(f"{folder}: {gone[0]} of a finished {command} is not there; it is made again")
            say_otherwise_begun(folder, before, environment)
            environment |= {key: before[key] for key in ("config", "inputs") if key in before}
    if not resumed:
        names = made(folder, command)
        refuse_if_taken(command, records, names, overwrite)
        if overwrite and names:
            replaced = replacing.set_aside(folder, names)
    if replaced:
        environment["replaced"] = replaced.name
    return environment, resumed, replaced


def finished(command: str, folder: Path) -> Finished:
    return Finished(f"{folder}: this {command} is finished already (overwrite=true redoes it)")


def is_whole(command: str, records: Records, config: dict[str, Any]) -> bool:
    """Is this very run finished, and is what it made still there?"""
    if not records.are_ours() or unlike(command, *records.read(), config) or not records.is_finished():
        return False
    if TRAINED in OUTPUTS[command]:
        try:
            check(records.folder)
        except ValueError:
            return False
    return all((records.folder / name).is_file() for name in last_outputs(records.folder, command, config))


def last_outputs(folder: Path, command: str, config: Mapping[str, Any]) -> list[str]:
    """What a finished command has written for certain. A demo's tables may have been replaced by a later command's."""
    if command == "study":
        return list(FOUND)
    replaced = [name for later in MEASURED if records_of(folder, later).config.is_file() for name in MEASURED[later]]
    left_out = {*DICTIONARIES} - {TRAINED} | ({ELSEWHERE} if not config.get("elsewhere") else set())
    certain = [name for name in OUTPUTS[command] if name not in left_out]
    return [name for name in certain if command != "demo" or name not in replaced]


def unlike(command: str, old: dict[str, Any], before: dict[str, Any], config: dict[str, Any]) -> str:
    """In words, what a folder with these records holds instead of this very run; empty if it is this one."""
    if made_by(before) != command:
        return f"a run of {made_by(before)}"
    if difference := differences(old, config):
        return f"a run of {command} with another configuration ({difference})"
    place = dictionaries_folder(command, config)
    was = before.get("inputs", {}).get("dictionaries")
    with suppress(ValueError):  # they are gone: nothing says that it was of others
        if place and was and was != fingerprint(place):
            return f"a run of {command} on other dictionaries than {place} holds now"
    return ""


def made(folder: Path, command: str) -> list[str]:
    """The files and folders that the command would make again, of those that a run there made: its records and outputs.

    For a command that makes dictionaries or a study: everything of the run, what was measured on it and its page too.
    """
    main = records_of(folder, "train")
    maker = made_by(read_environment(main.environment)) if main.are_ours() else None
    later = [name for name in MEASURED if records_of(folder, name).are_ours()]
    found: list[str] = []
    if command in MEASURED:
        if command in later:
            found += records_of(folder, command).names
        if command in later or set(OUTPUTS[command]) <= set(OUTPUTS.get(maker or "", ())):
            found += OUTPUTS[command]
    elif maker:
        found += [*main.names, *OUTPUTS.get(maker, ()), PAGE, *of_wandb(folder)]
        for name in later:
            found += [*records_of(folder, name).names, *OUTPUTS[name]]
    there = [name for name in dict.fromkeys(found) if os.path.lexists(folder / name)]
    return [name for name in there if name != PAGE or is_page(folder / PAGE)]


def of_wandb(folder: Path) -> list[str]:
    """The folders in `wandb` of the run's own W&B run."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        name = json.loads((folder / "wandb.json").read_text(encoding="utf-8"))["id"]
        return [f"wandb/{path.name}" for path in sorted(folder.glob("wandb/*run-*")) if path.name.endswith(f"-{name}")]
    return []


def refuse_if_taken(command: str, records: Records, names: Sequence[str], overwrite: bool) -> None:
    """Raises ValueError if files are in the way of a new run that it may not replace:
    only what a run made, if told so.
    """
    folder = records.folder
    free = set(names) if overwrite else set()
    if records.are_ours():  # of a run that wrote nothing
        free |= {records.config.name, records.environment.name}
    elif not os.path.lexists(records.config):
        with suppress(OSError, ValueError):
            read_environment(records.environment)  # of one that was killed before it wrote the other
            free.add(records.environment.name)
    taken = [
        name for name in (*records.names, *OUTPUTS[command]) if os.path.lexists(folder / name) and name not in free
    ]
    if taken and taken[0] in names:
        raise ValueError(f"{folder} holds {taken[0]} of the run there; give another out=, or overwrite=true to redo it")
    if taken:
        raise ValueError(f"{folder} holds {taken[0]}, but no rayscope {command} that wrote it; give another out=")


def begun(folder: Path, command: str) -> bool:
    """Has the command, or another in its place, written anything but records?"""
    return any(os.path.lexists(folder / name) for name in OUTPUTS.get(command, ()))


def resumes(command: str, out: object) -> bool:
    """Would the command, which failed, go on where it was?"""
    if command not in OUTPUTS or command in MEASURED or not isinstance(out, str):
        return False
    return any(
        any(Path(out).glob(f"{place}{name}"))
        for place in ("", "arms/*/", "budgets/*/arms/*/")
        for name in (CHECKPOINT, BEFORE, TRAINED)
    )


def records_of(folder: Path, command: str) -> Records:
    return Records(folder, f"{command}." if command in MEASURED else "")


def replaced_by(folder: Path, environment: dict[str, Any]) -> Path | None:
    """The folder, if it is still there, to which the run with this environment moved the one before it."""
    name = environment.get("replaced")
    if not isinstance(name, str) or "/" in name or not replacing.OLD.search(name):
        return None
    path = real(folder).with_name(name)
    return path if path.is_dir() else None


def is_page(path: Path) -> bool:
    """Is it a report of ours?"""
    try:
        with path.open("rb") as file:
            return b"rayscope</title>" in file.read(4096)
    except OSError:
        return False


def remove_empty(folders: Sequence[Path]) -> None:
    for path in folders:
        with suppress(OSError):
            path.rmdir()
