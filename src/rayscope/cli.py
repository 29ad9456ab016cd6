"""rayscope demo|train|evaluate|features|study|sites|report|benchmark [key=value ...]: compose, instantiate, run. With overrides.py, all that knows hydra."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rayscope.console import say
from rayscope.memory import keep_freed_memory
from rayscope.overrides import check
from rayscope.runs import Finished, run

CONF = "pkg://rayscope.conf"
EVALUATED = ["evaluation.csv", "latent_density.csv"]
FEATURES = ["token_features.csv", "contexts.json"]
RECORDS = ("{}.config.yaml", "{}.environment.json", "{}.finished.json", ".{}.replaced", ".{}.moving")
STUDY = ["table.csv", "figure.svg", "verdict.json", "arms"]
TRAINED = [  # and, when a run is replaced, what was measured on its dictionaries
    *("checkpoint.ckpt", "training.csv", "snapshots", "dictionaries", "trained.json", *EVALUATED, *FEATURES, "report"),
    *(name.format(command) for command in ("evaluate", "features") for name in RECORDS),
]


class Wrong(SystemExit):
    """Exit code 1; the one line that says why is on stderr."""

    def __init__(self, message: str):
        say(f"rayscope: {' '.join(message.split())}")
        super().__init__(1)


def train(config: DictConfig, folder: Path) -> None:
    from rayscope import pipeline
    from rayscope.sites import resolve

    if (folder / pipeline.TRAINED).is_file():
        return
    if config.stage == "kl":
        return tune(config, folder)
    if config.stage != "dictionaries":
        raise ValueError(f"stage={config.stage}: dictionaries or kl")
    source = open_source(config)
    sites = resolve(config.sites.patterns, source.model)
    dictionaries = {name: hydra.utils.instantiate(partial) for name, partial in config.dictionaries.items()}
    with loggers(config) as opened:
        pipeline.train_dictionaries(
            source, sites, dictionaries, folder, tokens=config.tokens, loggers=opened, **config.training
        )


def tune(config: DictConfig, folder: Path) -> None:
    from rayscope import pipeline

    options = {"folder": None, **config.finetuning}
    given = options.pop("folder")
    if not given:
        raise ValueError("stage=kl: finetuning.folder is not set; give that of saved dictionaries")
    if Path(given).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"stage=kl: finetuning.folder={given} is in out={folder}; give another out=")
    common = {k: v for k, v in config.training.items() if k not in ("snapshots", "snapshot_names")}
    with loggers(config) as opened:
        pipeline.finetune_dictionaries(open_source(config), Path(given), folder, loggers=opened, **options, **common)


def evaluate(config: DictConfig, folder: Path, compared: Any = None) -> None:
    import pandas as pd

    from rayscope import pipeline
    from rayscope.report import print_summary

    if not (folder / "evaluation.csv").is_file():
        compared = compared or open_comparison(config, folder)
        table = pipeline.evaluate_dictionaries(compared, folder, **config.evaluation)
        log_evaluation(config, table)
    print_summary(pd.read_csv(folder / "evaluation.csv"), stdout())


def features(config: DictConfig, folder: Path, compared: Any = None) -> None:
    if (folder / "token_features.csv").is_file():
        return
    from rayscope import pipeline

    compared = compared or open_comparison(config, folder)
    pipeline.measure_features(compared, folder, **config.features)
    say(f"token features: {folder / 'token_features.csv'}")


def study(config: DictConfig, folder: Path) -> None:
    if (folder / "verdict.json").is_file():
        return
    from rayscope import studies
    from rayscope.report import verdict_lines
    from rayscope.sites import resolve

    asked: Any = OmegaConf.to_container(config.study, resolve=True)
    options = {"seeds": asked["seeds"], **asked["sizes"][config.size]}
    source = open_source(config)
    sites = tuple(resolve(config.sites.patterns, source.model))
    setting = studies.Setting(source, sites, tuple(options.pop("seeds")), folder)
    verdict = studies.conduct(
        hydra.utils.instantiate(asked["run"], **options),
        setting,
        **{key: asked[key] for key in ("name", "question")},
        predictions={name: studies.Prediction(**entry) for name, entry in asked["predictions"].items()},
        size=config.size,
    )
    for line in verdict_lines(verdict):
        stdout().print(line, markup=False, soft_wrap=True)


def report(config: DictConfig, folder: Path) -> None:
    from rayscope.report import build

    stdout().print(f"report: {build(folder, config.studies)}", markup=False, soft_wrap=True)


def sites(config: DictConfig, folder: Path | None) -> None:
    from rayscope.sites import resolve

    for site in resolve(config.sites.patterns, open_model(config)):
        print(f"{site.hook}\t{site.width}")


def benchmark(config: DictConfig, folder: Path) -> None:
    from rayscope.benchmarks import running

    options: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    try:
        path = running.run(**options, show=lambda table: print(table, end="\n\n", flush=True))
    except KeyboardInterrupt:
        raise Wrong(f"interrupted; the parts that finished are in {config.out}") from None
    say(f"benchmark: {path}")


def demo(config: DictConfig, folder: Path) -> None:
    train(config, folder)
    unmeasured = [name for name in ("token_features.csv", "evaluation.csv") if not (folder / name).is_file()]
    compared = open_comparison(config, folder) if unmeasured else None
    features(config, folder, compared)
    evaluate(config, folder, compared)
    report(config, folder)


COMMANDS: dict[str, tuple[Callable[[DictConfig, Any], None], list[str] | None]] = {
    "demo": (demo, TRAINED),
    "train": (train, TRAINED),
    "evaluate": (evaluate, EVALUATED),
    "features": (features, FEATURES),
    "study": (study, STUDY),
    "report": (report, None),
    "sites": (sites, None),
    "benchmark": (benchmark, None),
}


def open_model(config: DictConfig):
    import torch

    device = str(config.device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device={device}: cpu, cuda, cuda:0, ... or auto")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device}: no CUDA device here; use device=cpu")
    return hydra.utils.instantiate(config.model, device=device)


def open_source(config: DictConfig):
    from rayscope.source import Source
    from rayscope.text import pack

    model = open_model(config)
    text = pack(hydra.utils.instantiate(config.text), model.tokenizer, model.context, config.cache)
    return Source(model, text, config.seed, precision=config.precision, **config.stream)


def open_comparison(config: DictConfig, folder: Path):
    """The saved dictionaries, and the baselines at their bits."""
    from rayscope.comparison import Baseline, compare
    from rayscope.pipeline import load_dictionaries

    source = open_source(config)
    learned = load_dictionaries(Path(config.dictionaries.get("folder") or folder / "dictionaries"), source.model)
    options = dict(config.baselines)
    listed = {name: Baseline(**hydra.utils.instantiate(entry)) for name, entry in options.pop("list").items()}
    return compare(source, learned, listed, **options)


@contextmanager
def loggers(config: DictConfig) -> Iterator[list]:
    if not config.get("logger"):
        yield []
        return
    try:
        yield [hydra.utils.instantiate(config.logger)]
    finally:
        if wandb := sys.modules.get("wandb"):
            wandb.finish()  # each job of a multirun is a run of its own


def log_evaluation(config: DictConfig, table) -> None:
    """eval/{metric}/{hook}/{dictionary} to the logger, position 0 left out, at the tokens trained on."""
    from rayscope.training_log import log

    rows = table[(table["position0"] == "excluded") & table["value"].notna()]
    names = "eval/" + rows["metric"] + "/" + rows["site"] + "/" + rows["dictionary"]
    tokens = rows["trained_tokens"].dropna().max() if rows["trained_tokens"].notna().any() else 0
    with loggers(config) as opened:
        log(opened, int(tokens), dict(zip(names, rows["value"], strict=True)), {})


def stdout():
    from rich.console import Console

    return Console(highlight=False)


def perform(command: str, argv: list[str], config: DictConfig) -> None:
    function, outputs = COMMANDS[command]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    keep_freed_memory()
    try:
        if config.threads is not None:
            set_threads(config.threads)
        if outputs is None:
            return function(config, Path(config.out) if config.out else None)
        if command == "study":
            check_size(config.study.sizes, config.size)  # on which other values depend
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        with run(command, plain, argv, outputs) as folder:
            function(config, folder)
    except Finished as finished:
        say(str(finished))
    except MissingMandatoryValue as error:
        raise Wrong(f"{error.full_key} is not set; give {error.full_key}=...") from None
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
    argv = sys.argv[1:] if argv is None else argv
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
        raise Wrong(
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
            raise Wrong(str(error)) from None

    call_hydra(command, [f"rayscope {command}", *rest], lambda config: perform(command, argv, config))


def parts_by_name(arguments: list[str]) -> list[str]:
    """`benchmark step many rounds=3` -> `benchmark parts=[step,many] rounds=3`."""
    words = [arg for arg in arguments if "=" not in arg and not arg.startswith("-")]
    return [*([f"parts=[{','.join(words)}]"] if words else []), *(arg for arg in arguments if arg not in words)]


def call_hydra(command: str, argv: list[str], task: Callable[[DictConfig], None]) -> None:
    before = sys.argv
    sys.argv = argv
    try:
        hydra.main(config_path=CONF, config_name=command, version_base="1.3")(task)()
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()


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
