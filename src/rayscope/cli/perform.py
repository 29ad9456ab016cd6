"""A composed configuration, checked and handed to its command, in the folder of its run."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rayscope.cli.checks import check
from rayscope.cli.commands import COMMANDS, show_verdict
from rayscope.console import say
from rayscope.errors import explain
from rayscope.memory import keep_freed_memory
from rayscope.runs.run import OUTPUTS, Finished, Unfinished, occupied, out_folder, resumes, run
from rayscope.runs.settings import with_run_settings


def perform(command: str, argv: list[str], config: DictConfig) -> None:
    """Runs the command. Raises CommandError for what the user can mend."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    keep_freed_memory()
    try:
        check(command, config)
        if config.threads is not None:
            set_threads(config.threads)
        if command == "sites":
            return COMMANDS[command](config, None)
        config.out = str(folder := out_folder(config.out))
        if command == "report":
            there_if_given("studies", config.studies, HydraConfig.get().overrides.task)
        if command not in OUTPUTS:  # what it writes is no run
            with occupied(folder, argv) if command == "report" and folder.is_dir() else nullcontext():
                return COMMANDS[command](config, folder)
        config = with_run_settings(command, config, HydraConfig.get().overrides.task)
        check(command, config)  # what came from a run's own file
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        with run(command, plain, argv) as folder:
            COMMANDS[command](config, folder)
    except Finished as finished:
        say(str(finished))
        if command == "study":
            show_verdict(Path(config.out))
    except Unfinished as part:
        say(str(part))
    except Exception as error:
        known = explain(error, places(config), resumes(command, value(config, "out")))
        if known is None:
            raise
        raise known from None


def there_if_given(option: str, folder: str | None, given: Sequence[str]) -> None:
    """Raises ValueError for no folder, unless it is the option's default: that need not be there."""
    if folder and any(one.startswith(f"{option}=") for one in given) and not Path(folder).expanduser().is_dir():
        raise ValueError(
            f"{option}={folder}: no such folder; give one below which finished studies are, or null for none"
        )


def places(config: DictConfig) -> dict[str, Path]:
    """The folders that a command writes in, by what the user calls them."""
    found = {name: value(config, name) for name in ("out", "cache")}
    found["RAYSCOPE_CACHE"] = os.environ.get("RAYSCOPE_CACHE")
    return {name: Path(str(path)) for name, path in found.items() if path} | {"TMPDIR": Path(tempfile.gettempdir())}


def value(config: DictConfig, key: str) -> Any:
    """None for what is not there or refers to what is not there."""
    with suppress(OmegaConfBaseException):
        return config.get(key)


def set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
