"""Hydra's own flags among the arguments of a command."""

from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from rayscope.cli.options import declared, names_under, shown
from rayscope.errors import CommandError

FLAGS = {  # hydra's, by whether a value follows
    **dict.fromkeys(
        ("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun"), False
    ),
    **dict.fromkeys(("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"), True),
    **dict.fromkeys(("-cd", "--config-dir", "--experimental-rerun"), True),
}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(flags, each with its value after it; key=value arguments): hydra takes flags at either end alone."""
    flags: list[str] = []
    given: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            if flags and flags[-1] in ("-i", "--info") and argument in INFO:
                flags.append(argument)
            else:
                given.append(argument)
        elif argument in ("-i", "--info"):
            flags.append(argument)
        elif name == "--info" and value in INFO:
            flags += [name, value]
        elif name in FLAGS and not equals:
            flags.append(name)
            if FLAGS[name]:
                following = next(rest, None)
                if following is None:
                    raise CommandError(f"{name}: its value is missing")
                flags.append(following)
        elif FLAGS.get(name):
            flags += [name, value]
        elif equals and name not in FLAGS:
            raise CommandError(f"{shown(argument)}: options have no dashes; give {shown(argument.lstrip('-'))}")
        else:
            option = name.lstrip("-").replace("-", "_")
            if declared(option) or names_under(option):
                raise CommandError(f"{shown(argument)}: options have no dashes; give {option}=...")
            known = [*FLAGS, "--info"]
            near = get_close_matches(name, known, n=2) or [flag for flag in known if flag.startswith("--")]
            raise CommandError(f"no flag {shown(argument)}; nearest: {', '.join(near)}")
    check_flags(flags)
    return flags, given


def check_flags(flags: list[str]) -> None:
    """Raises CommandError for a flag's value that is none, and for flags that exclude each other."""
    for flag, value in pairwise([*flags, ""]):
        if flag in ("-c", "--cfg") and value not in ("job", "hydra", "all"):
            raise CommandError(f"{flag} {shown(value)}: job, hydra or all")
        if flag in ("-m", "--multirun") and set(flags) & {"-c", "--cfg", "-i", "--info"}:
            raise CommandError(f"{flag} runs; leave it out to see a configuration")
        if flag in ("-cd", "--config-dir") and not Path(value).is_dir():
            raise CommandError(f"{flag} {shown(value)}: not a folder")
