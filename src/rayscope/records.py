"""config.yaml, environment.json, finished.json: what a command did in a folder, on what, and whether it is done."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from rayscope import __version__
from rayscope.console import say
from rayscope.dictionaries.sparse import native
from rayscope.files import write_whole

PACKAGES = ("torch", "lightning", "transformers", "transformer-lens", "datasets", "hydra-core", "numpy", "wandb")

NOT_COMPARED = (  # options, with all below them, that change no saved weight or number: a run resumes with others
    "out", "overwrite", "cache", "logger", "device", "threads", "part",
    "training.checkpoint_steps", "training.checkpoint_seconds", "training.log_every",
)  # fmt: skip
IN_WORDS = {
    "text": "the text, tokenizer or context",
    "model": "the model's weights or configuration",
    "dictionaries": "the dictionaries that it reads",
    "baselines": "the text that the baselines are fitted on",
    "elsewhere": "the text of another kind",
}


@dataclass(frozen=True)
class Records:
    """Their paths. prefix: "" for the command that makes a run; `evaluate.` and the like for one that adds to it."""

    folder: Path
    prefix: str = ""

    @property
    def config(self) -> Path:
        return self.folder / f"{self.prefix}config.yaml"

    @property
    def environment(self) -> Path:
        return self.folder / f"{self.prefix}environment.json"

    @property
    def finished(self) -> Path:
        return self.folder / f"{self.prefix}finished.json"

    @property
    def names(self) -> list[str]:
        return [path.name for path in (self.config, self.environment, self.finished)]

    def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(configuration, environment). Raises ValueError if one of them is not there, not ours or not the other's."""
        config, about = read_config(self.config), read_environment(self.environment)
        if about.get("config", sha256 := digest(self.config.read_bytes())) != sha256:
            raise ValueError(f"{self.config} {not_ours(f'it was changed after {self.environment.name} was written')}")
        return config, about

    def are_ours(self) -> bool:
        try:
            self.read()
        except (OSError, ValueError):
            return False
        return True

    def is_finished(self) -> bool:
        if not self.finished.is_file():
            return False
        try:
            read(self.finished, json.loads, {"seconds": (int, float)})
        except ValueError as error:
            say(f"{str(error).rpartition(';')[0]}; looking at what is there instead")
            return False
        return True


def digest(config: bytes) -> str:
    """Of config.yaml, kept in environment.json: what later commands take from it decides what they measure."""
    return hashlib.sha256(config).hexdigest()


def read_config(path: Path) -> dict[str, Any]:
    return read(path, yaml.safe_load, {"out": str, "seed": int, "overwrite": bool})


def read_environment(path: Path) -> dict[str, Any]:
    about = read(path, json.loads, {"versions": dict, "command": str})
    if "rayscope" not in about["versions"] or not made_by(about) or not isinstance(about.get("inputs", {}), dict):
        raise ValueError(f"{path} {not_ours('it names no rayscope command')}")
    return about


def made_by(about: Mapping[str, Any]) -> str:
    """The command of an environment.json, such as train."""
    program, _, rest = about["command"].partition(" ")
    return rest.split(" ")[0] if program == "rayscope" else ""


def read(path: Path, parse: Callable[[str], Any], keys: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """A mapping with at least these keys, of these types. Raises ValueError, with the path, for anything else."""
    try:
        text = path.read_bytes().decode()
        found = parse(text)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; put it back, or give another out=") from None
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} {not_ours(brief(' '.join(str(error).split()), 80))}") from None
    if not text.strip():
        raise ValueError(f"{path} {not_ours('it is empty')}")
    if not isinstance(found, dict):
        raise ValueError(f"{path} {not_ours(f'it holds a {type(found).__name__}')}")
    for key, kind in keys.items():
        if not isinstance(found.get(key), kind):
            raise ValueError(f"{path} {not_ours(f'{key} is {brief(repr(found.get(key)), 40)}')}")
    return found


def not_ours(why: str) -> str:
    return f"is not what rayscope wrote ({why}); put that back, or give another out="


def describe(argv: Sequence[str], device: str = "auto") -> dict[str, Any]:
    return {
        "versions": {
            "rayscope": __version__,
            "python": platform.python_version(),
            **{p: installed(p) for p in PACKAGES},
        },
        "threads": torch.get_num_threads(),
        "native": native.library() is not None,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device_name(device),
        "command": " ".join(["rayscope", *argv]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def device_name(device: str) -> str:
    """The graphics card's for auto, if there is one, and for cuda, cuda:1, ..."""
    if not torch.cuda.is_available() or not device.startswith(("auto", "cuda")):
        return "cpu"
    number = device.partition(":")[2]
    known = number.isdecimal() and int(number) < torch.cuda.device_count()
    return torch.cuda.get_device_name(int(number) if known else None)


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def say_otherwise_begun(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A line for each thing that moves the last bits of a result and is not what the run began with."""
    for what in ("threads", "native", "cpu", "device", "versions.rayscope", "versions.torch", "versions.numpy"):
        was, here = flat(before).get(what), flat(now).get(what)
        if was != here:
            say(
                f"{folder}: begun with {what.removeprefix('versions.')} {was}, "
                f"going on with {here}: not bitwise the same"
            )


def same_inputs(records: Records, inputs: Mapping[str, str]) -> None:
    """Keeps the fingerprints of what a run reads in its environment.json.

    Raises ValueError if they are there already, of an unfinished run, and others.
    """
    config, about = records.read()
    before = about.get("inputs", {})
    changed = [name for name in inputs if before.get(name, inputs[name]) != inputs[name]]
    if changed:
        what = " and ".join(IN_WORDS[name] for name in changed)
        again = f"move {records.folder} away" if config["overwrite"] else "overwrite=true to begin again"
        raise ValueError(
            f"{records.folder}: {what} changed after this run began; put them back, or give another out=, or {again}"
        )
    if any(name not in before for name in inputs):
        write_whole(records.environment, json.dumps({**about, "inputs": {**before, **inputs}}, indent=2))


def differences(before: dict, now: dict, most: int = 3, longest: int = 40) -> str:
    """`k: 8 -> 16; ...`, the first few keys that differ; empty if none does."""
    old, new = compared(before), compared(now)
    found = [key for key in {**old, **new} if old.get(key) != new.get(key) or (key in old) != (key in new)]
    said = [f"{k}: {brief(str(old.get(k)), longest)} -> {brief(str(new.get(k)), longest)}" for k in found[:most]]
    return "; ".join(said) + (f"; and {len(found) - most} more" if len(found) > most else "")


def compared(config: dict) -> dict[str, Any]:
    """{"a.b": value} of what decides the result. Paths in the run's folder are relative to it:
    it may have been moved.
    """
    inside, values = f"{config.get('out')}/", {}
    for key, value in flat(config).items():
        if not any(f"{key}.".startswith(f"{name}.") for name in NOT_COMPARED):
            is_inside = isinstance(value, str) and value.startswith(inside)
            values[key] = f"${{out}}/{value.removeprefix(inside)}" if is_inside else value
    return values


def flat(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of {"a": {"b": value}}."""
    values = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return values


def brief(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
