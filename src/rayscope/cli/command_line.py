"""`rayscope COMMAND [key=value ...]`: composed by Hydra, checked, run; what is wrong is one line."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rayscope.cli import multirun
from rayscope.cli.checks import check
from rayscope.cli.commands import COMMANDS
from rayscope.cli.flags import apart
from rayscope.cli.grammar import quoted
from rayscope.cli.groups import groups, names_of
from rayscope.cli.options import nearest, shown
from rayscope.cli.overrides import ready, split
from rayscope.cli.perform import perform
from rayscope.cli.refusals import refused
from rayscope.console import say
from rayscope.errors import CommandError, explain
from rayscope.stopping import stop_behind, stopping

CONF = "pkg://rayscope.conf"


def main(argv: list[str] | None = None) -> None:
    """Runs a command; what is wrong is on stderr, in one line, and the exit code is 1;
    after a stop signal 128 + its number.
    """
    try:
        with stopping():
            command_line(sys.argv[1:] if argv is None else argv)
    except (KeyboardInterrupt, Exception) as error:
        stopped = stop_behind(error)
        if stopped or isinstance(error, KeyboardInterrupt):
            say(f"rayscope: {stopped or error}")
            raise SystemExit(stopped.code if stopped else 130) from None
        if known := explain(error):
            say(f"rayscope: {known}")
            raise SystemExit(1) from None
        say("rayscope: this is a bug in rayscope; please report it with the lines below")
        traceback.print_exception(error)
        raise SystemExit(1) from error


def command_line(argv: list[str]) -> None:
    if argv and argv[0] in ("--version", "-V"):
        from rayscope import __version__

        return print(f"rayscope {__version__}")
    if not argv or argv[0] in ("-h", "--help", "help"):
        return print(
            f"rayscope {'|'.join(COMMANDS)} [key=value ...]\n\n`rayscope COMMAND --help` lists a command's options."
        )
    command, rest = argv[0], argv[1:]
    if command in ("-sc", "--shell-completion"):
        return complete(rest)
    if command not in COMMANDS:
        if later := next((name for name in rest if name in COMMANDS), None):
            raise CommandError(f"{shown(command)}: the command comes first, as in rayscope {later} {shown(command)}")
        near = get_close_matches(command.lower(), COMMANDS, n=2)
        raise CommandError(
            f"no command {command!r}; {'nearest: ' + ', '.join(near) if near else 'there are ' + ', '.join(COMMANDS)}"
        )
    flags, given = apart(rest)
    given = in_short(command, given)
    try:
        given = ready(given, sweep="-m" in flags or "--multirun" in flags)
    except ValueError as error:
        raise CommandError(str(error)) from None
    try:
        if any(arg[:1] == "+" for arg in given):
            refuse_unused(command, flags, given)
        if set(flags) & {"--cfg", "-c", "--info", "-i"}:
            check(command, compose(command, flags, given))
        call_hydra(command, [f"rayscope {command}", *flags, *given], lambda config: perform(command, argv, config))
    except (HydraException, OmegaConfBaseException) as error:  # of composing: of what the task raises nothing is left
        raise CommandError(why(command, flags, given, error)) from None


def why(command: str, flags: list[str], given: list[str], error: Exception) -> str:
    """One line on arguments that do not compose."""
    chosen = [arg for arg in given if arg.partition("=")[0] in groups()]
    for choices in (chosen, []):
        with suppress(HydraException, OmegaConfBaseException):
            return refused(command, given, compose(command, flags, choices), error)
    return str(error).strip().split("\n")[0]


def compose(command: str, flags: list[str], given: list[str]) -> DictConfig:
    """What hydra would run."""
    values = dict(pairwise(flags))
    folder = values.get("--config-dir", values.get("-cd"))
    path = [f"hydra.searchpath=[{quoted(f'file://{Path(folder).resolve()}')}]"] if folder else []
    name = values.get("--config-name", values.get("-cn", command))
    with hydra.initialize_config_module("rayscope.conf", version_base="1.3", job_name=command):
        return hydra.compose(name, [*path, *given])


def refuse_unused(command: str, flags: list[str], given: list[str]) -> None:
    """Raises CommandError for an option that is added where the command has none of the kind: it would do nothing."""
    base = compose(command, flags, [])
    for sign, key, _ in map(split, given):
        section = key.partition(".")[0]
        if sign in ("+", "++") and section not in base and section.split("/")[0] != "hydra" and "@" not in key:
            raise CommandError(f"no option {key!r} in {command}; nearest: {', '.join(nearest(key, names_of(base)))}")


def in_short(command: str, given: list[str]) -> list[str]:
    """`benchmark step many` is `benchmark parts=[step,many]`, and `study pareto` is `study study=pareto`."""
    words = [argument for argument in given if "=" not in argument]
    if command == "benchmark" and words:
        return [f"parts=[{','.join(words)}]", *(argument for argument in given if argument not in words)]
    if command == "study" and given[:1] == words[:1] != []:
        return [f"study={given[0]}", *given[1:]]
    return given


def call_hydra(command: str, argv: list[str], task: Callable[[DictConfig], None]) -> None:
    """hydra composes and calls the task, once or, with -m, for every job; what it or the task raises is raised here."""
    failed: list[Exception] = []

    def guarded(config: DictConfig) -> CommandError | None:
        try:
            task(config)
        except Exception as error:  # hydra would print it at length
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return multirun.of_job(error)
            failed.append(error)
        return None

    multirun.install()
    OmegaConf.register_new_resolver("rayscope_commands", lambda: ", ".join(COMMANDS), replace=True)  # for --help
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        hydra.main(config_path=CONF, config_name=command, version_base="1.3")(guarded)()
    finally:
        sys.argv = before
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR")
        GlobalHydra.instance().clear()
    if failed:
        raise failed[0]


def complete(arguments: list[str]) -> None:
    """hydra's shell completion, installed by `eval "$(rayscope -sc install=bash)"`; the command is completed first."""
    if not arguments:
        raise CommandError("-sc: give install=bash, install=zsh or install=fish, or uninstall= and one of them")
    program, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    command, space, rest = line.lstrip().partition(" ")
    if arguments[0].startswith("query=") and not (space and command in COMMANDS):
        return print(" ".join(name for name in COMMANDS if name.startswith(command)))
    os.environ["COMP_LINE"] = f"{program} {rest}"
    call_hydra(command if space else "train", ["rayscope", "-sc", *arguments], lambda config: None)
