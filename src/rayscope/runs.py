"""A run's folder: its configuration, what it ran on, what is finished; one configuration a folder."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from rayscope import __version__
from rayscope.backup import Backup
from rayscope.console import say
from rayscope.dictionaries import native
from rayscope.files import write_whole

PACKAGES = ("torch", "lightning", "transformers", "transformer-lens", "datasets", "hydra-core", "numpy", "wandb")
NOT_COMPARED = ("out", "overwrite", "logger")  # keys that change nothing of the result


class Finished(Exception):
    """This very run is done already."""


@contextmanager
def run(command: str, config: dict[str, Any], argv: list[str], outputs: list[str]) -> Iterator[Path]:
    """The run's folder, to work in. Its configuration and environment are written first, `finished.json` at the end.

    They are config.yaml and environment.json of the command that makes a run (demo, train, study), and bear the command's name
    before that of one that adds to it. outputs: what the command writes; with overwrite they are replaced, and stay beside
    it, in `.replaced`, until the new run is finished. A run that fails before it has written any leaves the folder as it was.
    Raises Finished where the same run is done, ValueError where the folder holds another configuration or its outputs.
    """
    folder = Path(config["out"])
    prefix = "" if command in ("demo", "train", "study") else f"{command}."
    records = [f"{prefix}{name}" for name in ("config.yaml", "environment.json", "finished.json")]
    record, about, done = (folder / name for name in records)
    backup = Backup(folder, prefix, records, outputs)
    environment = describe(argv)
    if done.is_file():
        backup.drop()
    backup.settle()
    overwrite = bool(config.get("overwrite"))
    fresh = overwrite or not record.is_file()
    if not fresh:
        difference = differences(yaml.safe_load(record.read_text()), config)
        if difference:
            raise ValueError(
                f"{folder} holds a run of {command} with another configuration ({difference}); "
                "give another out=, or overwrite=true to redo it"
            )
        if done.is_file():
            raise Finished(f"{folder}: this {command} is finished already (overwrite=true redoes it)")
        before = json.loads(about.read_text()) if about.is_file() else environment
        for what in ("threads", "native"):
            if before.get(what) != environment[what]:
                here = environment[what]
                say(f"{folder}: begun with {what} {before.get(what)}, going on with {here}: not bitwise the same")
    elif not overwrite and (there := [name for name in outputs if (folder / name).exists()]):
        raise ValueError(f"{folder} holds {there[0]} of another run; give another out=, or overwrite=true to redo it")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    started = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite:
            backup.make()
        write_whole(record, yaml.safe_dump(config, sort_keys=False))
        write_whole(about, json.dumps(environment, indent=2))
        yield folder
    except BaseException:
        if not backup.settle() and fresh and not backup.begun():  # it never began: take its traces away
            record.unlink(missing_ok=True)
            about.unlink(missing_ok=True)
            for path in made:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
        if backup.replaced.exists():
            say(f"{folder}: the run before is in {backup.replaced} until this one is finished")
        raise
    write_whole(done, json.dumps({"seconds": round(time.monotonic() - started, 1)}))
    backup.drop()


def describe(argv: list[str]) -> dict[str, Any]:
    return {
        "versions": {"rayscope": __version__, "python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "threads": torch.get_num_threads(),
        "native": native.library() is not None,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": " ".join(["rayscope", *argv]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def differences(before: dict, now: dict, most: int = 3, longest: int = 40) -> str:
    """`k: 8 -> 16; ...`, the first few keys that differ; empty where none does."""
    old, new = (flat({key: value for key, value in c.items() if key not in NOT_COMPARED}) for c in (before, now))
    found = [key for key in {**old, **new} if old.get(key) != new.get(key) or (key in old) != (key in new)]
    said = [f"{k}: {brief(old.get(k), longest)} -> {brief(new.get(k), longest)}" for k in found[:most]]
    return "; ".join(said) + (f"; and {len(found) - most} more" if len(found) > most else "")


def flat(config: dict, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of {"a": {"b": value}}."""
    values = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return values


def brief(value: Any, longest: int) -> str:
    text = str(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."
