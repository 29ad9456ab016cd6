"""What each command does with its configuration."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from rayscope.console import say, stdout
from rayscope.escapes import visible
from rayscope.files import real
from rayscope.records import Records, same_inputs
from rayscope.runs.run import ELSEWHERE, FOUND, MEASURED, records_of
from rayscope.stopping import Stopped
from rayscope.training.trained import check_run_of, is_trained


def train(config: DictConfig, folder: Path, loggers: Sequence[Any]) -> None:
    from rayscope import pipeline
    from rayscope.model.sites import resolve

    if is_trained(folder):
        return
    if config.stage == "kl":
        return tune(config, folder, loggers)
    source = open_source(config, records_of(folder, "train"))
    sites = resolve(config.sites.patterns, source.model)
    check_text(config, source, sites)
    dictionaries = {name: hydra.utils.instantiate(partial) for name, partial in config.dictionaries.items()}
    options = dict(config.training)
    size = options.pop("calibration_tokens")
    pipeline.train_dictionaries(
        source.stream("train", sites, config.tokens),
        source.stream("validation", sites, size, option="training.calibration_tokens"),
        dictionaries,
        folder,
        about={site: source.provenance(site) for site in sites},
        vocabulary=source.model.vocabulary,
        loggers=loggers,
        **options,
    )


def check_text(config: DictConfig, source: Any, sites: list) -> None:
    """Raises ValueError before training for a text too small for what `demo` does after it."""
    from rayscope import pipeline
    from rayscope.cli.texts import of_another_kind

    if "features" in config:
        sizes = {key: config.features[key] for key in ("tokens", "most_frequent", "spaced", "min_count")}
        pipeline.frequent_tokens(source, sites, **sizes)
        source.stream("train", sites, config.baselines.fit_tokens, option="baselines.fit_tokens")
    if config.get("elsewhere"):
        of_another_kind(config, source, records_of(Path(config.out), "train"))


def tune(config: DictConfig, folder: Path, loggers: Sequence[Any]) -> None:
    from rayscope import pipeline
    from rayscope.runs.settings import differences

    options = {"folder": None, **config.finetuning}
    given = options.pop("folder")
    if not given:
        raise ValueError("stage=kl: finetuning.folder is not set; give that of saved dictionaries")
    if real(given).is_relative_to(real(folder)):
        raise ValueError(f"stage=kl: finetuning.folder={given} is in out={folder}; give another out=")
    common = {k: v for k, v in config.training.items() if k not in ("snapshots", "snapshot_names")}
    options["said"] = differences(Path(given), config)
    check_run_of(Path(given))
    source = open_source(config, records_of(folder, "train"), reads=Path(given))
    pipeline.finetune_dictionaries(source, Path(given), folder, loggers=loggers, **options, **common)


def evaluate(config: DictConfig, folder: Path, loggers: Sequence[Any], compared: Any = None) -> None:
    from rayscope import pipeline
    from rayscope.evaluation.measure import check_options
    from rayscope.report import print_coders, print_summary, read_file

    check_options(**config.evaluation)
    if not all((folder / name).is_file() for name in MEASURED["evaluate"]):
        compared = compared or open_comparison(config, records_of(folder, "evaluate"))
        pipeline.evaluate_dictionaries(compared, folder, **config.evaluation)
    table = read_file(folder / "evaluation.csv")
    log_evaluation(loggers, table)
    seconds = read_file(folder / "encode_seconds.csv")
    print_summary(table, stdout(), seconds)
    print_coders(table, seconds, stdout())


def features(config: DictConfig, folder: Path, compared: Any = None) -> None:
    from rayscope import pipeline
    from rayscope.report import print_features, read_file

    if not all((folder / name).is_file() for name in MEASURED["features"]):
        compared = compared or open_comparison(config, records_of(folder, "features"))
        pipeline.measure_features(compared, folder, **config.features)
    print_features(read_file(folder / "token_features.csv"), stdout())
    say(f"token features: {folder / 'token_features.csv'}")


def study(config: DictConfig, folder: Path) -> None:
    if not all((folder / name).is_file() for name in FOUND):
        conduct(config, folder)
    show_verdict(folder)


def show_verdict(folder: Path) -> None:
    from rayscope.report import read_verdict, verdict_lines

    for line in verdict_lines(read_verdict(folder / "verdict.json")):
        stdout().print(visible(line), soft_wrap=True)


def conduct(config: DictConfig, folder: Path) -> None:
    from rayscope import studies
    from rayscope.model.sites import resolve

    asked: Any = OmegaConf.to_container(config.study, resolve=True)
    options = asked["sizes"][config.size]
    source = open_source(config, records_of(folder, "study"))
    sites = tuple(resolve(config.sites.patterns, source.model))
    seeds, part = tuple(options.pop("seeds", None) or ()), part_of(config.part)
    studies.conduct(
        hydra.utils.instantiate(asked["run"]),
        studies.Setting(source, sites, seeds, folder, config.size, part=part),
        **{key: asked[key] for key in ("name", "question")},
        predictions={name: studies.Prediction(**entry) for name, entry in asked["predictions"].items()},
        size=config.size,
        options=options,
        trained_on=asked.get("trained_on") or (),
    )


def part_of(part: str | None) -> tuple[int, int] | None:
    """Raises ValueError for what is no part, such as 3/2."""
    if part is None:
        return None
    number, of = map(int, part.split("/"))
    if not 1 <= number <= of:
        raise ValueError(f"part={part}: part {number} of {of}; the first number counts from 1 to the second")
    return number, of


def report(config: DictConfig, folder: Path) -> None:
    from rayscope.report import build

    stdout().print(visible(f"report: {build(folder, config.studies)}"), soft_wrap=True)


def sites(config: DictConfig, folder: Path | None) -> None:
    from rayscope.model.sites import resolve

    for site in resolve(config.sites.patterns, open_model(config)):
        print(f"{site.hook}\t{site.width}")


def benchmark(config: DictConfig, folder: Path) -> None:
    from rayscope.benchmarks import running

    options: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    try:
        path = running.run(**options, show=lambda table: print(table, end="\n\n", flush=True))
    except Stopped as stopped:
        raise Stopped(stopped.number, f"benchmark stopped; the parts that finished are in {config.out}") from None
    say(f"benchmark: {path}")


def demo(config: DictConfig, folder: Path, loggers: Sequence[Any]) -> None:
    from rayscope.evaluation.measure import check_options

    check_options(**config.evaluation)
    train(config, folder, loggers)
    tables = [folder / name for command in ("features", "evaluate") for name in MEASURED[command]]
    tables += [folder / ELSEWHERE] if config.elsewhere else []
    compared = None if all(path.is_file() for path in tables) else open_comparison(config, records_of(folder, "demo"))
    features(config, folder, compared)
    evaluate(config, folder, loggers, compared)
    if config.elsewhere:
        elsewhere(config, folder, compared)
    report(config, folder)


def elsewhere(config: DictConfig, folder: Path, compared: Any) -> None:
    """The headline's dictionaries on text of another kind. compared: None if they are measured already."""
    from rayscope import pipeline
    from rayscope.cli.texts import of_another_kind
    from rayscope.report import print_elsewhere, read_file

    if not (folder / ELSEWHERE).is_file():
        source = of_another_kind(config, compared.source, records_of(folder, "demo"))
        options = {key: value for key, value in config.evaluation.items() if key != "coders"}
        pipeline.evaluate_elsewhere(compared, source, folder / ELSEWHERE, **options)
    print_elsewhere(read_file(folder / "evaluation.csv"), read_file(folder / ELSEWHERE), stdout())


def logged(command: Callable[..., None]) -> Callable[[DictConfig, Path], None]:
    """The command with one W&B run, if one is asked for: begun before any work, ended as finished or as failed."""

    def perform(config: DictConfig, folder: Path) -> None:
        if not config.get("logger"):
            return command(config, folder, [])
        records = records_of(folder, command.__name__)
        whole, environment = records.read()
        whole["versions"] = environment["versions"]
        run = hydra.utils.instantiate(config.logger)
        run.begin(folder, {command.__name__: whole} if records.prefix else whole)  # of one that adds to a run, apart
        try:
            command(config, folder, [run])
        except BaseException:
            run.finish(failed=True)
            raise
        run.finish(failed=False)

    return perform


COMMANDS: dict[str, Callable[[DictConfig, Any], None]] = {
    "demo": logged(demo),
    "train": logged(train),
    "evaluate": logged(evaluate),
    "features": features,
    "study": study,
    "report": report,
    "sites": sites,
    "benchmark": benchmark,
}


def open_model(config: DictConfig):
    import torch

    device = str(config.device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device}: no CUDA device here; use device=cpu")
    return hydra.utils.instantiate(config.model, device=device)


def open_source(config: DictConfig, records: Records, reads: Path | None = None):
    """The model and text of a run, whose fingerprints are kept in its records,
    with those of the dictionaries that it reads.

    Raises ValueError if the run began with others.
    """
    from rayscope.dictionaries import fingerprint
    from rayscope.streams.source import Source
    from rayscope.text import pack

    read = {"dictionaries": fingerprint(reads)} if reads else {}  # first: whether there are any is soon said
    model = open_model(config)
    text = pack(hydra.utils.instantiate(config.text), model.tokenizer, model.context, config.cache)
    source = Source(model, text, config.seed, precision=config.precision, **config.stream)
    same_inputs(records, source.fingerprints() | read)
    return source


def open_comparison(config: DictConfig, records: Records):
    """The saved dictionaries, and the baselines at their bits."""
    from rayscope.cli.texts import of_baselines
    from rayscope.evaluation.comparison import Baseline, compare
    from rayscope.evaluation.entry import named_entries
    from rayscope.evaluation.saved import load_dictionaries
    from rayscope.runs.settings import differences, measured_folder, say_otherwise_trained

    place = measured_folder(config)
    check_run_of(place)
    source = open_source(config, records, reads=None if records.prefix == "" else place)
    learned = load_dictionaries(place, source.model)
    say_otherwise_trained(learned, source, differences(place, config))
    options = dict(config.baselines)
    fitting = of_baselines(options.pop("text"), source, learned, place, config.cache)
    if fitting is not source:
        same_inputs(records, {"baselines": fitting.text.fingerprint})
    listed = [Baseline(method, **hydra.utils.instantiate(entry)) for method, entry in options.pop("list").items()]
    return compare(source, named_entries(learned), listed, **options, fitting=fitting)


def log_evaluation(loggers: Sequence[Any], table) -> None:
    """eval/{metric}/{hook}/{dictionary} to W&B, position 0 left out, at the most bits per value and the tokens trained
    on."""
    from rayscope.report.tables import most_bits

    rows = most_bits(table[(table["position0"] == "excluded") & table["value"].notna()])
    names = "eval/" + rows["metric"] + "/" + rows["site"] + "/" + rows["dictionary"]
    tokens = max(rows["trained_tokens"].dropna(), default=0)
    for logger in loggers:
        logger.write_evaluation(int(tokens), dict(zip(names, rows["value"], strict=True)))
