"""rayscope demo|train|evaluate|features|sites|report [key=value ...]: compose, instantiate, run. All that knows hydra."""

import errno
import json
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rayscope.console import say
from rayscope.runs import Finished, run

CONF = "pkg://rayscope.conf"
TRAINED = ["checkpoint.ckpt", "training.csv", "snapshots", "dictionaries"]
EVALUATED = ["evaluation.csv", "latent_density.csv"]
FEATURES = ["token_features.csv", "contexts.json"]


class Wrong(SystemExit):
    """Exit code 1; the one line that says why is on stderr."""

    def __init__(self, message: str):
        say(f"rayscope: {' '.join(message.split())}")
        super().__init__(1)


def train(config: DictConfig, folder: Path) -> None:
    if (folder / "trained.json").is_file():
        return
    from rayscope import pipeline
    from rayscope.sites import resolve

    source = open_source(config)
    options = dict(config.training)
    loggers = open_loggers(config)
    pipeline.train_dictionaries(
        source,
        resolve(config.sites.patterns, source.model),
        {name: hydra.utils.instantiate(partial) for name, partial in config.dictionaries.items()},
        folder,
        tokens=config.tokens,
        loggers=loggers,
        **options,
    )
    close_loggers(loggers)
    (folder / "trained.json").write_text(json.dumps({"tokens": config.tokens}))


def evaluate(config: DictConfig, folder: Path) -> None:
    import pandas as pd

    from rayscope import pipeline
    from rayscope.report.tables import print_summary

    if not (folder / "evaluation.csv").is_file():
        source = open_source(config)
        table = pipeline.evaluate_dictionaries(
            source,
            pipeline.load_dictionaries(saved_at(config, folder), source.model),
            open_baselines(config),
            folder,
            headline_k=config.baselines.headline_k,
            fit_tokens=config.baselines.fit_tokens,
            **config.evaluation,
        )
        log_evaluation(config, table)
    print_summary(pd.read_csv(folder / "evaluation.csv"), stdout())


def features(config: DictConfig, folder: Path) -> None:
    if (folder / "token_features.csv").is_file():
        return
    from rayscope import pipeline

    source = open_source(config)
    pipeline.measure_features(
        source,
        pipeline.load_dictionaries(saved_at(config, folder), source.model),
        open_baselines(config),
        folder,
        headline_k=config.baselines.headline_k,
        fit_tokens=config.baselines.fit_tokens,
        **config.features,
    )
    say(f"token features: {folder / 'token_features.csv'}")


def report(config: DictConfig, folder: Path) -> None:
    from rayscope.report import build

    stdout().print(f"report: {build(folder)}", markup=False, soft_wrap=True)


def sites(config: DictConfig, folder: Path | None) -> None:
    from rayscope.sites import resolve

    for site in resolve(config.sites.patterns, open_model(config)):
        print(f"{site.hook}\t{site.width}")


def demo(config: DictConfig, folder: Path) -> None:
    train(config, folder)
    features(config, folder)
    evaluate(config, folder)
    report(config, folder)


COMMANDS: dict[str, tuple[Callable[[DictConfig, Any], None], list[str] | None]] = {
    "demo": (demo, [*TRAINED, "trained.json", *EVALUATED, *FEATURES, "report"]),
    "train": (train, [*TRAINED, "trained.json"]),
    "evaluate": (evaluate, EVALUATED),
    "features": (features, FEATURES),
    "report": (report, None),
    "sites": (sites, None),
}


def open_model(config: DictConfig):
    import torch

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device}: no CUDA device here; use device=cpu")
    return hydra.utils.instantiate(config.model, device=device)


def open_source(config: DictConfig):
    from rayscope.pipeline import Source
    from rayscope.text import pack

    model = open_model(config)
    text = pack(hydra.utils.instantiate(config.text), model.tokenizer, model.context, config.cache)
    return Source(model, text, config.seed, precision=config.precision, **config.stream)


def open_baselines(config: DictConfig) -> dict:
    from rayscope.pipeline import Baseline

    return {name: Baseline(**hydra.utils.instantiate(entry)) for name, entry in config.baselines.list.items()}


def open_loggers(config: DictConfig) -> list:
    return [hydra.utils.instantiate(config.logger)] if config.get("logger") else []


def close_loggers(loggers: list) -> None:
    if loggers:
        import wandb

        wandb.finish()  # each job of a multirun is a run of its own


def log_evaluation(config: DictConfig, table) -> None:
    """eval/{metric}/{hook}/{dictionary} to the logger, position 0 left out."""
    loggers = open_loggers(config)
    rows = table[(table["position0"] == "excluded") & table["value"].notna()]
    for logger in loggers:
        names = "eval/" + rows["metric"] + "/" + rows["site"] + "/" + rows["dictionary"]
        logger.log_metrics(dict(zip(names, rows["value"], strict=True)))
    close_loggers(loggers)


def saved_at(config: DictConfig, folder: Path) -> Path:
    return Path(config.dictionaries.get("folder") or folder / "dictionaries")


def stdout():
    from rich.console import Console

    return Console(highlight=False)


def perform(command: str, argv: list[str], config: DictConfig) -> None:
    function, outputs = COMMANDS[command]
    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        if outputs is None:
            return function(config, Path(config.out) if config.out else None)
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        with run(command, plain, argv, outputs) as folder:
            function(config, folder)
    except Finished as finished:
        say(str(finished))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise Wrong(
                f"no space left on the disk of {error.filename or config.out}; free some, the run resumes"
            ) from None
        raise Wrong(str(error)) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        raise Wrong(str(cause)) from None
    except KeyboardInterrupt:
        raise Wrong("interrupted; the same command resumes") from None


def check_overrides(command: str, overrides: list[str]) -> None:
    """One line, with the nearest valid names, for what hydra would refuse at length."""
    with hydra.initialize_config_module("rayscope.conf", version_base="1.3", job_name=command):
        base = hydra.compose(command)
        try:
            hydra.compose(command, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            known = [*base.keys(), *flat_keys(base)]
            for override in overrides:
                key, _, value = override.lstrip("+~").partition("=")
                if override[0] not in "+~" and key not in known and OmegaConf.select(base, key) is None:
                    if key.split(".")[0] in groups() or "/" in key:
                        continue
                    near = get_close_matches(key, known, n=3, cutoff=0.5)
                    raise Wrong(f"no option {key!r}; nearest: {', '.join(near) or ', '.join(base)}") from None
                if key in groups() and "." not in key:
                    near = get_close_matches(value, groups()[key], n=3, cutoff=0.3) or groups()[key]
                    if value not in groups()[key] and value[:1] != "[":
                        raise Wrong(f"no {key}={value}; nearest: {', '.join(near)}") from None
            raise Wrong(str(error).split("\n")[0]) from None
    GlobalHydra.instance().clear()


def groups() -> dict[str, list[str]]:
    """{group of conf/: its choices}."""
    from importlib.resources import files

    root = files("rayscope.conf")
    return {
        folder.name: sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))
        for folder in root.iterdir()
        if folder.is_dir() and folder.name != "__pycache__"
    }


def flat_keys(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key in config:
        name = f"{prefix}{key}"
        found.append(name)
        if OmegaConf.is_missing(config, key):
            continue
        value = config._get_node(key)
        if isinstance(value, DictConfig):
            found += flat_keys(value, f"{name}.")
    return found


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("--version", "-V"):
        from rayscope import __version__

        return print(f"rayscope {__version__}")
    if not argv or argv[0] in ("-h", "--help"):
        return print(__doc__ + "\n\n`rayscope COMMAND --help` lists a command's options.")
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=2)
        raise Wrong(
            f"no command {command!r}; {'nearest: ' + ', '.join(near) if near else 'there are ' + ', '.join(COMMANDS)}"
        )
    if not any(arg.startswith("-") for arg in rest):
        check_overrides(command, rest)

    def task(config: DictConfig) -> None:
        perform(command, argv, config)

    before = sys.argv
    sys.argv = [f"rayscope {command}", *rest]
    try:
        hydra.main(config_path=CONF, config_name=command, version_base="1.3")(task)()
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()


if __name__ == "__main__":
    main()
