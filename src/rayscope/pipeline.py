"""The stages of a run on one folder: train, evaluate, features. Each writes its tables whole, and is skipped once they are there."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from rayscope import metrics
from rayscope.activations import ActivationStream, permutation
from rayscope.baselines import SiteFit, fit_sites
from rayscope.console import say
from rayscope.contexts import top_contexts
from rayscope.dictionaries import Dictionary, Learned, find, load
from rayscope.evaluation import Means, bits_per_token, evaluate
from rayscope.features import appearance, choose_tokens, token_features, with_appearance
from rayscope.files import write_whole
from rayscope.model import LanguageModel
from rayscope.sites import Site, resolve
from rayscope.text import SPLITS, PackedText
from rayscope.training import CHECKPOINT, train

DICTIONARIES = "dictionaries"
TRAINED = "trained.json"  # is there once every dictionary is


@dataclass(frozen=True)
class Source:
    """Where activations come from: the model, the packed text, and how the stream is cut."""

    model: LanguageModel
    text: PackedText
    seed: int = 0
    batch_size: int = 1024
    round_tokens: int = 65_536
    precision: str = "fp32"

    def stream(self, split: str, sites: Sequence[Site], tokens: int, precision: str | None = None) -> ActivationStream:
        """At most one pass over a held-out split; training text is passed over as often as the tokens need."""
        rows, per_row = self.text[split], self.text.context - 1
        round_tokens = max(1, min(self.round_tokens, tokens))
        if split != "train" and tokens >= self.batch_size:
            if len(rows) * per_row < self.batch_size:
                raise ValueError(f"text: split {split} is smaller than one batch of {self.batch_size}; give more text")
            rounds = -(-min(tokens, len(rows) * per_row) // round_tokens)
            rounds = min(rounds, len(rows) // -(-self.batch_size // per_row))  # each holds a batch, and no row twice
            round_tokens = min(-(-round_tokens // per_row), len(rows) // rounds) * per_row
            tokens = min(tokens, rounds * (round_tokens // self.batch_size) * self.batch_size)
        return ActivationStream(
            self.model,
            rows,
            sites,
            tokens=tokens,
            batch_size=self.batch_size,
            round_tokens=round_tokens,
            seed=self.seed,
            precision=precision or self.precision,
        )

    def provenance(self, site: Site) -> dict[str, Any]:
        text = {"sha256": self.text.fingerprint, "context": self.text.context}
        return {"site": site.hook, "model": self.model.provenance(), "text": text, "precision": self.precision}


def train_dictionaries(
    source: Source,
    sites: Sequence[Site],
    partials: dict[str, Callable[..., Learned]],
    folder: Path,
    *,
    tokens: int,
    calibration_tokens: int,
    loggers: Sequence[Logger] = (),
    **options: Any,
) -> None:
    """Trains every dictionary at every site and saves it in `folder/dictionaries/<site key>/<name>`."""
    if not partials:
        raise ValueError("dictionaries: none is configured; add one, such as dictionaries=[topk]")
    try:
        dictionaries = {site: {name: make(width=site.width) for name, make in partials.items()} for site in sites}
    except TypeError as error:
        raise ValueError(f"dictionaries: {error}") from None  # an argument that the class does not take
    stream = source.stream("train", sites, tokens)
    train(
        stream,
        dictionaries,
        folder,
        calibration=source.stream("validation", sites, calibration_tokens),
        loggers=loggers,
        **options,
    )
    for site, named in dictionaries.items():
        for name, dictionary in named.items():
            about = {**source.provenance(site), "tokens": len(stream) * stream.batch_size, "seed": dictionary.seed}
            dictionary.save(folder / DICTIONARIES / site.key / name, about)
    write_whole(folder / TRAINED, json.dumps({"tokens": len(stream) * stream.batch_size}))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    say(f"trained: {sum(map(len, dictionaries.values()))} dictionaries in {folder / DICTIONARIES}")


def load_dictionaries(folder: Path, model: LanguageModel) -> dict[Site, dict[str, Dictionary]]:
    """The saved dictionaries of a folder by site. One name at one site each; of this very model, where they say which.

    Raises ValueError for a dictionary of another model or width, and for one that does not say its site.
    """
    loaded: dict[Site, dict[str, Dictionary]] = {}
    for path, place in find(folder).items():
        dictionary = load(place).to(model.device)
        hook = dictionary.provenance.get("site")
        if not hook:
            raise ValueError(f"{place}: the dictionary does not say its site; save it with provenance={{'site': ...}}")
        (site,) = resolve(hook, model)
        if dictionary.width != site.width:
            raise ValueError(f"{place}: width {dictionary.width}, but {hook} of {model.name} has {site.width}")
        trained_on = dictionary.provenance.get("model", {})
        if trained_on.get("sha256", model.fingerprint) != model.fingerprint:
            raise ValueError(
                f"{place}: trained on model {trained_on.get('name')} with other weights than {model.name}; give that model"
            )
        parts = [part for part in Path(path).parts if part != site.key]
        loaded.setdefault(site, {})["/".join(parts) or place.name] = dictionary
    return loaded


@dataclass(frozen=True)
class Baseline:
    """fit: SiteFit -> Dictionary | None; budgets: `all` the ray dictionaries' bits, or those at the `headline` k."""

    fit: Callable[[SiteFit], Dictionary | None]
    budgets: str = "all"

    def __post_init__(self):
        if self.budgets not in ("all", "headline"):
            raise ValueError(f"baselines: budgets={self.budgets}; all or headline")


def baselines_at_equal_bits(
    fit: SiteFit, baselines: dict[str, Baseline], learned: dict[str, Dictionary], headline_k: int, fitted_tokens: int
) -> dict[str, Dictionary]:
    """Each baseline at the least k that costs at least the bits of a learned dictionary, named `<name>_k<k>`.

    The budgets are those of rays of a fixed k (of any dictionary, where there are none): the few bits by which a baseline
    is above are its advantage.
    """
    plain = [d for d in learned.values() if not d.signed and not d.adaptive] or list(learned.values())
    every = {d.k: bits_per_token(d) for d in plain}
    chosen = {"all": every, "headline": {k: b for k, b in every.items() if k == headline_k} or every}
    found: dict[str, Dictionary] = {}
    for name, baseline in baselines.items():
        dictionary = baseline.fit(fit)
        if dictionary is None:
            continue
        for bits in chosen[baseline.budgets].values():
            k = metrics.k_of_bits(bits, dictionary.latents, dictionary.signed, dictionary.fixed_support)
            at_k = dictionary.with_k(k)
            at_k.provenance.setdefault("tokens", fitted_tokens)
            found[f"{name}_k{k}"] = at_k
    return found


@dataclass(frozen=True)
class Comparison:
    """What is compared at each site: its dictionaries, and all of them after the baselines at equal bits.

    fitted: what the baselines were fitted from, {site.key: SiteFit}; headline_k: the k at which single budgets are read.
    """

    source: Source
    learned: dict[Site, dict[str, Dictionary]]
    all: dict[Site, dict[str, Dictionary]]
    fitted: dict[str, SiteFit]
    headline_k: int


def compare(
    source: Source,
    learned: dict[Site, dict[str, Dictionary]],
    baselines: dict[str, Baseline],
    headline_k: int,
    fit_tokens: int,
) -> Comparison:
    sites, device = list(learned), source.model.device
    fitted = fit_sites(source.model, sites, source.stream("train", sites, fit_tokens, "fp32"))
    both = {}
    for site, named in learned.items():
        found = baselines_at_equal_bits(fitted[site.key], baselines, named, headline_k, fit_tokens)
        both[site] = {name: d.to(device) for name, d in found.items()} | named
    return Comparison(source, learned, both, fitted, headline_k)


def position_means(compared: Comparison, rows: int = 64) -> dict[str, Means]:
    source, sites, device = compared.source, list(compared.all), compared.source.model.device
    chosen = permutation(len(source.text.train), source.seed, "evaluation", 1).numpy()[:rows]
    tokens_RC = torch.from_numpy(source.text.train.tokens[chosen][:, :1].astype(np.int64)).to(device)
    first = source.model.activations(tokens_RC, sites)  # position 0 sees no other position
    return {s.key: Means(first[s.key][:, 0].mean(0), compared.fitted[s.key].mean_D.to(device)) for s in sites}


def evaluate_dictionaries(compared: Comparison, folder: Path, **options: Any) -> pd.DataFrame:
    """Writes evaluation.csv and latent_density.csv."""
    source = compared.source
    means = position_means(compared)
    table, densities = evaluate(source.model, source.text.test, compared.all, means, seed=source.seed, **options)
    write_table(densities, folder / "latent_density.csv")
    write_table(table, folder / "evaluation.csv")
    return table


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
    """Writes token_features.csv and contexts.json, from the snapshots too where the folder has some."""
    source, dictionaries, both, headline_k = compared.source, compared.learned, compared.all, compared.headline_k
    budgets = {site: headline_budget(named.values(), headline_k) for site, named in both.items()}
    both = {
        site: {
            name: d
            for name, d in named.items()
            if (name in names if names is not None else abs(bits_per_token(d) / budgets[site] - 1) <= 0.12)
        }
        for site, named in both.items()
    }
    if not any(both.values()):
        raise ValueError(
            f"features.names={names}: no such dictionary; there are {', '.join(sorted(next(iter(dictionaries.values()))))}"
        )
    sites = list(both)
    splits = {split: source.stream(split, sites, tokens, "fp32") for split in SPLITS[1:]}
    seen = {
        split: np.bincount(tokens_of(stream), minlength=len(source.text.train.counts))
        for split, stream in splits.items()
    }
    chosen = choose_tokens(
        source.text.train.counts,
        most_frequent,
        spaced,
        min_count=min_count,
        available=np.minimum(*seen.values()),
        exclude=source.model.tokenizer.all_special_ids,
    )
    trained = {
        name: d.provenance["tokens"] for named in both.values() for name, d in named.items() if "tokens" in d.provenance
    }
    table = token_features(
        both,
        splits["validation"],
        splits["test"],
        chosen,
        source.model.tokenizer,
        seed=source.seed,
        trained_tokens=trained,
    )
    found = list(snapshots(folder / "snapshots", sites))
    if found:
        table = with_appearance(table, appearance(found, splits["validation"], chosen))
    learned = {site: {n: d for n, d in both[site].items() if n in dictionaries[site]} for site in sites}
    entries = top_contexts(table, windows(source, sites, tokens), learned, source.model.tokenizer, tokens=contexts)
    write_whole(folder / "contexts.json", json.dumps(entries, indent=1))
    write_table(table, folder / "token_features.csv")
    return table


def headline_budget(dictionaries: Iterable[Dictionary], headline_k: int) -> float:
    known = list(dictionaries)
    rays = [d for d in known if not d.signed and not d.adaptive] or known
    return bits_per_token(min(rays, key=lambda d: abs(d.k - headline_k)))


def tokens_of(stream: ActivationStream) -> np.ndarray:
    """The tokens at the stream's positions, without running the model."""
    rounds = -(-len(stream) // stream.batches_a_round)
    return np.concatenate([stream.rows.tokens[stream.rows_of_round(r)][:, 1:].ravel() for r in range(rounds)])


def snapshots(folder: Path, sites: Sequence[Site]) -> Iterator[tuple[int, dict[str, dict[str, Dictionary]]]]:
    for place in sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name)):
        yield (
            int(place.name),
            {site.key: {path.name: load(path) for path in sorted((place / site.key).glob("*"))} for site in sites},
        )


def windows(
    source: Source, sites: Sequence[Site], tokens: int, rows: int = 16
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """(tokens_RC, {site.key: x_RCD}) of whole test rows."""
    count = min(len(source.text.test), -(-tokens // source.text.context))
    chosen = permutation(len(source.text.test), source.seed, "evaluation", 0).numpy()[:count]
    for start in range(0, count, rows):
        tokens_RC = torch.from_numpy(source.text.test.tokens[chosen[start : start + rows]].astype(np.int64))
        yield tokens_RC, source.model.activations(tokens_RC.to(source.model.device), sites)


def write_table(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, table.to_csv(index=False, float_format="%.7g"))
