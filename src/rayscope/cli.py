"""rayscope demo|train|evaluate|features|study|sites|report|benchmark [key=value ...]: compose, check, run; what is wrong is one line."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rayscope.commands import COMMANDS
from rayscope.console import say
from rayscope.errors import CommandError, explain
from rayscope.memory import keep_freed_memory
from rayscope.overrides import check
from rayscope.run_settings import with_run_settings
from rayscope.runs import OUTPUTS, Finished, occupied, out_folder, resumes, run
from rayscope.stopping import Stopped, stopping

CONF = "pkg://rayscope.conf"


def perform(command: str, argv: list[str], config: DictConfig) -> None:
    """Runs the command. Raises CommandError for what the user can mend."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    keep_freed_memory()
    try:
        if config.threads is not None:
            set_threads(config.threads)
        if command == "sites":
            return COMMANDS[command](config, None)
        config.out = str(folder := out_folder(config.out))
        if command not in OUTPUTS:  # what it writes is no run
            with occupied(folder, argv) if command == "report" and folder.is_dir() else nullcontext():
                return COMMANDS[command](config, folder)
        if command == "study":
            check_size(config.study.sizes, config.size)  # on which other values depend
        config = with_run_settings(command, config, HydraConfig.get().overrides.task)
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        with run(command, plain, argv) as folder:
            COMMANDS[command](config, folder)
    except Finished as finished:
        say(str(finished))
    except Exception as error:
        known = explain(error, places(config), resumes(command, config.get("out")))
        if known is None:
            raise
        raise known from None


def places(config: DictConfig) -> dict[str, Path]:
    """The folders that a command writes in, by what the user calls them."""
    found = {"out": config.get("out"), "cache": config.get("cache"), "RAYSCOPE_CACHE": os.environ.get("RAYSCOPE_CACHE")}
    return {name: Path(str(path)) for name, path in found.items() if path} | {"TMPDIR": Path(tempfile.gettempdir())}


def check_size(sizes: DictConfig, size: object) -> None:
    if size not in sizes:
        near = get_close_matches(str(size), sizes, n=1) or list(sizes)
        raise ValueError(f"size={size}: no such size; nearest: {', '.join(near)} (there are {', '.join(sizes)})")


def set_threads(threads: object) -> None:
    import torch

    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads={threads}: at least 1, or null")
    torch.set_num_threads(threads)


def main(argv: list[str] | None = None) -> None:
    """Runs a command; what is wrong is on stderr, in one line, and the exit code is 1; after a stop signal 128 + its number."""
    try:
        with stopping():
            command_line(sys.argv[1:] if argv is None else argv)
    except CommandError as error:
        say(f"rayscope: {error}")
        raise SystemExit(1) from None
    except KeyboardInterrupt as stopped:
        say(f"rayscope: {stopped}")
        raise SystemExit(stopped.code if isinstance(stopped, Stopped) else 130) from None
    except Exception as error:
        say("rayscope: this is a bug in rayscope; please report it with the lines below")
        traceback.print_exception(error)
        raise SystemExit(1) from error


def command_line(argv: list[str]) -> None:
    if argv and argv[0] in ("--version", "-V"):
        from rayscope import __version__

        return print(f"rayscope {__version__}")
    if not argv or argv[0] in ("-h", "--help"):
        return print((__doc__ or "") + "\n\n`rayscope COMMAND --help` lists a command's options.")
    command, rest = argv[0], argv[1:]
    if command in ("-sc", "--shell-completion"):
        return complete(rest)
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=2)
        raise CommandError(
            f"no command {command!r}; {'nearest: ' + ', '.join(near) if near else 'there are ' + ', '.join(COMMANDS)}"
        )
    if command == "benchmark":
        rest = parts_by_name(rest)
    if command == "study" and rest and "=" not in rest[0] and not rest[0].startswith("-"):
        rest = [f"study={rest[0]}", *rest[1:]]
    flags = [arg for arg in rest if arg.startswith("-")]
    if set(flags) <= {"-m", "--multirun"}:
        overrides = [arg for arg in rest if not arg.startswith("-")]
        rest = [*flags, *overrides]  # hydra takes -m at either end alone
        try:
            check(command, overrides, sweep=len(flags) > 0)
        except ValueError as error:
            raise CommandError(str(error)) from None
    call_hydra(command, [f"rayscope {command}", *rest], lambda config: perform(command, argv, config))


def parts_by_name(arguments: list[str]) -> list[str]:
    """`benchmark step many rounds=3` -> `benchmark parts=[step,many] rounds=3`."""
    words = [arg for arg in arguments if "=" not in arg and not arg.startswith("-")]
    return [*([f"parts=[{','.join(words)}]"] if words else []), *(arg for arg in arguments if arg not in words)]


def call_hydra(command: str, argv: list[str], task: Callable[[DictConfig], None]) -> None:
    """hydra composes and calls the task. What the task raises is raised here: hydra itself would print it at length."""
    failed: list[Exception] = []

    def guarded(config: DictConfig) -> None:
        try:
            task(config)
        except Exception as error:
            failed.append(error)

    before = sys.argv
    sys.argv = argv
    try:
        hydra.main(config_path=CONF, config_name=command, version_base="1.3")(guarded)()
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
    if failed:
        raise failed[0]


def complete(arguments: list[str]) -> None:
    """hydra's shell completion, installed by `eval "$(rayscope -sc install=bash)"`; the command is completed first."""
    program, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    command, space, rest = line.lstrip().partition(" ")
    if arguments[0].startswith("query=") and not (space and command in COMMANDS):
        return print(" ".join(name for name in COMMANDS if name.startswith(command)))
    os.environ["COMP_LINE"] = f"{program} {rest}"
    call_hydra(command if space else "train", ["rayscope", "-sc", *arguments], lambda config: None)


if __name__ == "__main__":
    main()
