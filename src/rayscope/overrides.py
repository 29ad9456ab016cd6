"""key=value arguments checked before hydra composes them: what it refuses at length is one line with the nearest names."""

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

NUMBERS = {  # the type of a default: the types that may replace it
    bool: ({bool}, "true or false"),
    int: ({int}, "a whole number"),
    float: ({int, float}, "a number"),
}


def check(command: str, given: list[str], sweep: bool = False) -> None:
    """One line, with the nearest valid names, for what hydra would refuse at length, and for a number that is none."""
    with hydra.initialize_config_module("rayscope.conf", version_base="1.3", job_name=command):
        base = hydra.compose(command)
        try:
            overrides = [first_of_sweep(text) for text in given] if sweep else given
            config = hydra.compose(command, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            chosen = [text for text in given if text.partition("=")[0] in groups()]
            for override in chosen:
                check_override(override, base)
            for override in given:
                check_override(override, hydra.compose(command, chosen))  # which may have options that the base has not
            where = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
            raise ValueError(where + str(error).split("\n")[0]) from None
    wanted = flat(base)
    for key, value in flat(config).items():
        fitting, what = NUMBERS.get(type(wanted.get(key)), (None, ""))
        if fitting and type(value) not in fitting:
            raise ValueError(f"{key}={value}: must be {what}, such as {str(wanted[key]).lower()}")


def first_of_sweep(text: str) -> str:
    """`k=4,8` of a multirun -> `k=4`; any other override as it is."""
    override = OverridesParser.create().parse_override(text)
    return (
        f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        if override.is_sweep_override()
        else text
    )


def check_override(override: str, base: DictConfig) -> None:
    """Raises ValueError where the override's key, or its choice of a group, is not known."""
    key, equals, value = override.partition("=")
    if not equals and key[:1] != "~":
        raise ValueError(f"{override!r} is not key=value")
    choices = groups().get(key)
    if choices is not None:
        for choice in value.strip("[]").split(","):
            if choice not in choices:
                near = get_close_matches(choice, choices, n=3, cutoff=0.5) or choices
                raise ValueError(f"no {key}={choice}; nearest: {', '.join(near)}")
    elif key[:1] not in "+~" and "/" not in key and "@" not in key:
        known = list(flat(base, between=True))
        parent, _, last = key.rpartition(".")
        siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
        near = [siblings[name] for name in get_close_matches(last, siblings, n=3)]
        if key not in known:
            near = (
                list(dict.fromkeys(near + get_close_matches(key, known, n=3)))
                or list(siblings)
                or [str(k) for k in base]
            )
            raise ValueError(f"no option {key!r}; nearest: {', '.join(near)}")


def groups() -> dict[str, list[str]]:
    """{group of conf/: its choices}."""
    root = files("rayscope.conf")
    return {
        folder.name: sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        for folder in root.iterdir()
        if folder.is_dir() and folder.name != "__pycache__"
    }


def flat(config: DictConfig, prefix: str = "", between: bool = False) -> dict[str, Any]:
    """{"a.b": value}; None where it is missing or cannot be resolved; with `between`, "a" too."""
    found: dict[str, Any] = {}
    for key in map(str, config):
        name, node = f"{prefix}{key}", config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            found |= ({name: None} if between else {}) | flat(node, f"{name}.", between)
        else:
            found[name] = OmegaConf.select(config, key) if not OmegaConf.is_interpolation(config, key) else None
    return found
