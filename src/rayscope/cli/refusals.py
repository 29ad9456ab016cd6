"""Why hydra does not compose what was given, in one line."""

import shlex
from difflib import get_close_matches

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rayscope.cli.grammar import parse
from rayscope.cli.groups import groups, names_of, of_choice
from rayscope.cli.options import declared, nearest, shown
from rayscope.cli.overrides import check_choice, split


def refused(command: str, given: list[str], base: DictConfig, error: Exception) -> str:
    """One line on why hydra does not compose these arguments.
    base: the command's configuration with the groups chosen.
    """
    known = list(names_of(base))
    for sign, key, value in map(split, given):
        if key in groups() and "No match in the defaults list" in str(error) and f"'{key}'" in str(error):
            inside = [name for name in known if name.startswith(f"{key}.")]
            there = ", ".join(inside or map(str, base))
            return f"{key}={shown(value)}: {command} has no {key} to choose; it has {there}"
        if key in groups() and value is not None:
            try:
                check_choice(key, value)
            except ValueError as wrong:
                return str(wrong)
        if sign == "+" and key in groups() and key in known:
            return f"+{key}: {key} is there already; give it without the +"
        if key in groups() or key.split(".")[0].split("/")[0] == "hydra" or "@" in key or "/" in key:
            continue
        if sign in ("", "~") and key not in known:
            return unknown(key, known)
        if sign == "+" and key in known:
            return f"+{key}: {key} is there already; give it without the +"
        if sign != "~" and declared(key) is None and parse(value or "") is None and (value or "").lower() != "null":
            return (
                f"{key}={shown(value)}: hydra cannot read it; text in it may need quotes: {shlex.quote(f'{key}=...')}"
            )
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return (
            f"no {group}={shown(name)}; nearest: {', '.join(get_close_matches(name, error.options) or error.options)}"
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException | HydraException) else error
    return str(cause).strip().split("\n")[0]


def unknown(key: str, known: list[str]) -> str:
    """What is said of a key that is no option of what was chosen; it may be one of another choice."""
    group = key.partition(".")[0]
    choices = groups().get(group, ()) if group in known else ()
    entry = ".".join(key.split(".")[:2])
    if group == "dictionaries" and entry not in known and any(entry in of_choice(group, one) for one in choices):
        return f"{key}: no {key.split('.')[1]} is trained; add it to dictionaries=[...]"
    if chosen := [one for one in choices if key in of_choice(group, one)]:
        return f"{key} is an option of {' and '.join(f'{group}={choice}' for choice in chosen)}; choose it as well"
    return f"no option {key!r}; nearest: {', '.join(nearest(key, known))}"
