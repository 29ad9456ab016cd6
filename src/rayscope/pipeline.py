"""The stages of a run on one folder: train, evaluate, features.
Each writes its tables whole, and is skipped once they are there.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rayscope.console import say
from rayscope.dictionaries import Learned
from rayscope.evaluation.comparison import BUDGET_BITS, Comparison, headline_budget, reference_codecs
from rayscope.evaluation.entry import Entry, by_site
from rayscope.evaluation.measure import check_options, measure
from rayscope.evaluation.measurement import Measurement
from rayscope.evaluation.recalibration import recalibrated
from rayscope.evaluation.recoding import under
from rayscope.evaluation.saved import load_dictionaries
from rayscope.evaluation.seconds import Stopwatch
from rayscope.features.appearance import appearance, snapshots, with_appearance
from rayscope.features.contexts import top_contexts
from rayscope.features.token_features import token_features
from rayscope.features.tokens import Tokens, choose_tokens
from rayscope.files import write_whole
from rayscope.model.sites import Site
from rayscope.runs.settings import say_otherwise_trained
from rayscope.streams.harvest import ActivationStream
from rayscope.streams.source import Source
from rayscope.streams.stream import Batch, Stream
from rayscope.text import SPLITS, said
from rayscope.training.finetuning import finetune
from rayscope.training.last_rows import LastRows
from rayscope.training.log import Log
from rayscope.training.train import train
from rayscope.training.trained import save_trained


def train_dictionaries(
    stream: Stream,
    calibration: Iterable[Batch],
    partials: dict[str, Callable[..., Learned]],
    folder: Path,
    *,
    about: dict[Site, dict[str, Any]],
    vocabulary: int,
    **options: Any,
) -> None:
    """Trains every dictionary at every site of a stream and saves it in `folder/dictionaries/<site key>/<name>`."""
    if not partials:
        raise ValueError("dictionaries: none is configured; add one, such as dictionaries=[topk]")
    try:
        dictionaries = {
            site: {name: build(make, site, vocabulary) for name, make in partials.items()} for site in stream.sites
        }
    except TypeError as error:
        raise ValueError(f"dictionaries: {error}") from None  # an argument that the class does not take
    diverged = train(stream, dictionaries, folder, about=about, calibration=calibration, **options)
    tokens = len(stream) * stream.batch_size

    def provenance(site: Site, dictionary: Learned) -> dict[str, Any]:
        return {**about.get(site, {}), "tokens": tokens, "seed": dictionary.seed, "lr": dictionary.lr}

    save_trained(dictionaries, diverged, folder, provenance, tokens=tokens, what="trained")


def build(make: Callable[..., Learned], site: Site, vocabulary: int) -> Learned:
    """A dictionary of the site's width, and, if its kind has one, of the model's vocabulary:
    see `Learned.from_model`.
    """
    facts = {"width": site.width, "vocabulary": vocabulary}
    kind: Any = make
    while hasattr(kind, "func"):  # a partial, or a partial of Hydra's
        kind = kind.func
    return make(**{name: facts[name] for name in getattr(kind, "from_model", Learned.from_model)})


def finetune_dictionaries(
    source: Source,
    given: Path,
    folder: Path,
    *,
    tokens: int,
    rows: int,
    kl: float,
    lr: float | None,
    calibration_tokens: int,
    loggers: Sequence[Log] = (),
    said: Iterable[str] = (),
    **options: Any,
) -> None:
    """Fine-tunes the saved dictionaries of the folder `given` on KL; saved by their names in `folder/dictionaries`.

    said: see `say_otherwise_trained`.
    """
    loaded = load_dictionaries(given, source.model)
    say_otherwise_trained(loaded, source, said)
    learned = {site: {n: d for n, d in named.items() if isinstance(d, Learned)} for site, named in loaded.items()}
    other = [name for site, named in loaded.items() for name in named if name not in learned[site]]
    if other:
        raise ValueError(f"finetuning.folder={given}: {other[0]} was not learned; give learned dictionaries alone")
    for site, named in learned.items():
        for name, dictionary in named.items():
            try:
                dictionary.unfold()
            except ValueError as error:
                raise ValueError(f"finetuning.folder={given}: {name} at {site.hook}: {error}") from None
    last = LastRows(source.text.train, tokens=tokens, rows_per_batch=rows, seed=source.seed)
    validation = source.stream("validation", list(learned), calibration_tokens, option="training.calibration_tokens")
    about = {site: source.provenance(site) for site in learned}
    diverged = finetune(
        source.model,
        last,
        learned,
        folder,
        about=about,
        weight=kl,
        lr=lr,
        calibration=validation,
        loggers=loggers,
        **options,
    )
    tuned = len(last) * last.tokens_per_batch

    def provenance(site: Site, dictionary: Learned) -> dict[str, Any]:
        tokens = (dictionary.provenance.get("tokens") or 0) + tuned
        tuning = {"tokens": tuned, "kl": kl, "rows": rows, "lr": lr or dictionary.lr}
        return {**about[site], "stage": "kl", "tokens": tokens, "finetuning": tuning}

    save_trained(learned, diverged, folder, provenance, tokens=tuned, what="fine-tuned")


def measure_compared(
    compared: Comparison, *, validation_tokens: int, recalibrate: bool = False, **options: Any
) -> Measurement:
    """recalibrate: thresholds are set again on validation text, in copies of the dictionaries."""
    source, entries = compared.source, compared.entries
    validation = partial(source.windows, "validation", compared.sites, validation_tokens)
    if recalibrate:
        entries = recalibrated(entries, validation(), source.text.provenance)
    references = reference_codecs(compared)
    return measure(
        source.model,
        source.text.test,
        entries,
        references,
        validation(),
        seed=source.seed,
        text=said(source.text.provenance),
        **options,
    )


def evaluate_dictionaries(
    compared: Comparison, folder: Path, *, coders: Sequence[str], draws: int, **options: Any
) -> pd.DataFrame:
    """Writes evaluation.csv, of every entry under each of the coders, latent_density.csv and encode_seconds.csv."""
    check_options(**options, coders=coders, draws=draws, context=compared.source.text.context)
    compared = replace(compared, entries=under(compared.entries, coders))
    stopwatch = Stopwatch()
    measured = measure_compared(compared, stopwatch=stopwatch, **options)
    table = measured.table(draws, compared.source.seed)
    write_table(stopwatch.table(compared.entries), folder / "encode_seconds.csv")
    write_table(measured.densities(), folder / "latent_density.csv")
    write_table(table, folder / "evaluation.csv")
    return table


def evaluate_elsewhere(compared: Comparison, source: Source, path: Path, *, draws: int, **options: Any) -> None:
    """Writes what evaluation.csv says, on the text of another source, of what was fitted on the run's: the learned
    dictionaries and PCA near the headline's bits, under their own coders, at the most bits per value, on half of the
    tokens, with a quarter of the splices. One table is not worth more of a demo's time.
    """
    near = named_or_headline(compared.entries, None, compared.headline_k)
    entries = [e for e in near if e.family == "PCA" or (e in compared.learned and e.role != "control")]
    options["value_bits"] = sorted(options["value_bits"])[-1:]
    for name, part in (("tokens", 2), ("splice_tokens", 4)):
        options[name] = max(source.text.context, options[name] // part)
    measured = measure_compared(replace(compared, source=source, entries=entries), **options)
    write_table(measured.table(draws, source.seed), path)


def measure_features(
    compared: Comparison,
    folder: Path,
    *,
    tokens: int,
    most_frequent: int,
    spaced: int,
    min_count: int,
    names: Sequence[str] | None,
    contexts: int,
) -> pd.DataFrame:
    """Writes token_features.csv and contexts.json, and what snapshots in the folder show."""
    source = compared.source
    entries = named_or_headline(compared.entries, names, compared.headline_k)
    sites = list(dict.fromkeys(entry.site for entry in entries))
    splits, chosen = frequent_tokens(
        source, sites, tokens=tokens, most_frequent=most_frequent, spaced=spaced, min_count=min_count
    )
    table = token_features(
        entries, splits["validation"], splits["test"], chosen, source.model.tokenizer, seed=source.seed
    )
    if (folder / "snapshots" / "0").is_dir():
        saved = snapshots(folder / "snapshots", sites)
        table = with_appearance(table, appearance(saved, splits["validation"], splits["test"], chosen))
    elif (folder / "snapshots").is_dir():
        say(f"{folder / 'snapshots'}: none of 0 tokens (an older run), so when tokens appeared is left blank")
    learned = by_site(entry for entry in entries if entry in compared.learned)
    windows = source.windows("test", sites, tokens)
    strongest = top_contexts(table, windows, learned, source.model.tokenizer, tokens=contexts)
    write_whole(folder / "contexts.json", json.dumps(strongest, indent=1))
    write_table(table, folder / "token_features.csv")
    return table


def frequent_tokens(
    source: Source, sites: Sequence[Site], *, tokens: int, most_frequent: int, spaced: int, min_count: int
) -> tuple[dict[str, ActivationStream], Tokens]:
    """The held-out streams that latents are tested on, and the tokens to test them for. The model is not run.

    Raises ValueError if the text is too small for either.
    """
    splits = {split: source.stream(split, sites, tokens, "fp32", "features.tokens") for split in SPLITS[1:]}
    seen = [np.bincount(stream.token_ids(), minlength=len(source.text.train.counts)) for stream in splits.values()]
    chosen = choose_tokens(
        source.text.train.counts,
        most_frequent,
        spaced,
        min_count=min_count,
        available=np.minimum(*seen),
        exclude=source.model.special_ids,
    )
    return splits, chosen


def named_or_headline(entries: Sequence[Entry], names: Sequence[str] | None, headline_k: int) -> list[Entry]:
    """Those named, or, without names, at each site those within 12% of the headline's bits.

    Raises ValueError for a name at no site.
    """
    if names is None:
        budgets = {site: headline_budget(named.values(), headline_k) for site, named in by_site(entries).items()}
        return [
            entry
            for entry in entries
            if abs(entry.dictionary.bits(value_bits=BUDGET_BITS) / budgets[entry.site] - 1) <= 0.12
        ]
    names = [names] if isinstance(names, str) else names
    there = sorted({entry.name for entry in entries})
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        near = get_close_matches(str(*unknown[:1]), there, n=3) or there
        raise ValueError(
            f"features.names={','.join(map(str, names))}: no {', '.join(map(str, unknown)) or 'name'}; "
            f"nearest: {', '.join(near)}"
        )
    return [entry for entry in entries if entry.name in names]


def write_table(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, table.to_csv(index=False, float_format="%.7g"))
