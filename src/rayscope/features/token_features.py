"""Frequency-ordered token features: how well one latent says "current token is v" and "previous token is v".

N vectors, L latents, T tokens, J labellings (real and shuffled labels of each predicate).
Latents, signs and thresholds are chosen on validation; what the table holds was measured on test. Splits are iterables
of Batch that can be read more than once (a stream or a list): validation is read three times, test twice.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.console import track
from rayscope.dictionaries.base import Codes, Dictionary
from rayscope.features.detection import Detectors, Ranked, at_threshold, choose, columns, positives
from rayscope.features.probes import fit_probes, probe_scores, probe_table

if TYPE_CHECKING:
    from rayscope.model.sites import Site
    from rayscope.streams.stream import Batch

PREDICATES = ("current", "previous")
COLUMNS = [
    *("site", "dictionary", "kind", "k", "latents", "predicate", "token", "token_id", "rank", "count"),
    *("latent", "sign", "threshold", "auroc", "balanced_accuracy", "f1", "positives"),
    *("labels", "split", "tokens", "trained_tokens", "seed", "appeared_at"),
]
WHOLE = ("k", "latents", "latent", "sign", "trained_tokens", "appeared_at")  # whole numbers that may be blank


@dataclass(frozen=True)
class Tokens:
    """The T tokens studied, most frequent first; rank 1 is the corpus's most frequent token that is not excluded."""

    ids_T: np.ndarray
    ranks_T: np.ndarray
    counts_T: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_T)


@dataclass(frozen=True)
class Labels:
    current_N: Tensor
    previous_N: Tensor
    positions_N: Tensor

    def __len__(self) -> int:
        return len(self.current_N)

    def shuffled(self, seed: int) -> "Labels":
        """The same labels at permuted positions: every count stays, every relation to the activations goes."""
        order_N = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return Labels(self.current_N[order_N], self.previous_N[order_N], self.positions_N[order_N])

    def classes(self, predicate: str, tokens: Tokens) -> Tensor:
        """classes_N: each label's place in `tokens`, T for a token that is not among them."""
        labels_N = {"current": self.current_N, "previous": self.previous_N}[predicate]
        ids_T, order_T = torch.from_numpy(tokens.ids_T).sort()
        place_N = torch.searchsorted(ids_T, labels_N).clamp(max=len(ids_T) - 1)
        return torch.where(ids_T[place_N] == labels_N, order_T[place_N], len(ids_T))


def choose_tokens(
    counts: np.ndarray,
    most_frequent: int = 50,
    spaced: int = 50,
    *,
    min_count: int = 20,
    available: np.ndarray | None = None,
    exclude: Collection[int] = (),
) -> Tokens:
    """The most frequent tokens of the corpus and `spaced` rarer ones at evenly spaced logarithms of their ranks.

    available: counts in the text that scores are measured on (the least over the splits), where a token must occur
    min_count times: with fewer some latent among thousands fits the positives by chance. `counts` unless given.
    exclude: ids that are neither ranked nor chosen. Equal counts: lower id first.
    """
    counts = np.asarray(counts, np.int64)
    available = counts if available is None else np.asarray(available)
    if most_frequent < 0 or spaced < 0 or most_frequent + spaced < 1:
        raise ValueError(f"most_frequent={most_frequent} and spaced={spaced}: at least one token must be asked for")
    order = np.argsort(-counts, kind="stable")
    order = order[~np.isin(order, list(exclude))]
    places = np.flatnonzero(
        (available[order] >= min_count) & (counts[order] > 0)
    )  # rank - 1 of those that occur enough
    if not len(places):
        raise ValueError(
            f"features.min_count={min_count}: no token occurs so often in the validation and the test text that is read; "
            "lower it, raise features.tokens or give more text"
        )
    head, tail = places[:most_frequent], places[most_frequent:]
    if len(tail) > spaced > 0:
        targets = np.geomspace(tail[0] + 1, tail[-1] + 1, spaced)
        steps = np.arange(spaced)
        nearest = np.searchsorted(tail + 1, targets.round())
        rising = np.maximum.accumulate(nearest - steps) + steps  # each at least one after the one before
        tail = tail[np.minimum(rising, len(tail) - spaced + steps)]
    places = np.concatenate([head, tail[:spaced]])
    return Tokens(order[places], places + 1, counts[order[places]])


@torch.no_grad()
def collect(
    batches: Iterable["Batch"], dictionaries: Mapping[str, Mapping[str, Dictionary]]
) -> tuple[Labels, dict[str, dict[str, Codes]]]:
    """The labels and every dictionary's codes {site.key: {name: Codes}}, in one pass; only sparse codes are kept."""
    labels: list[tuple[Tensor, Tensor, Tensor]] = []
    parts: dict[str, dict[str, list[Codes]]] = {
        key: {name: [] for name in named} for key, named in dictionaries.items()
    }
    for batch in batches:
        labels.append((batch.tokens_N.cpu(), batch.previous_N.cpu(), batch.positions_N.cpu()))
        for key, named in dictionaries.items():
            for name, dictionary in named.items():
                x_ND = batch.activations[key].to(dictionary.device)
                codes = dictionary.encode_sparse(x_ND, batch.tokens_N)
                small = (codes.indices_M.int().cpu(), codes.values_M.float().cpu(), codes.offsets.cpu())
                parts[key][name].append(Codes(*small, codes.latents))
    if not labels:
        raise ValueError("no batch was given; is the split smaller than one batch?")
    joined = {key: {name: concatenate(found) for name, found in named.items()} for key, named in parts.items()}
    return Labels(*(torch.cat(each) for each in zip(*labels, strict=True))), joined


def concatenate(parts: Sequence[Codes]) -> Codes:
    counts = torch.cat([part.offsets.diff() for part in parts])
    indices_M = torch.cat([part.indices_M for part in parts])
    return Codes(indices_M, torch.cat([p.values_M for p in parts]), F.pad(counts.cumsum(0), (1, 0)), parts[0].latents)


def ranked(codes: Codes, signed: bool) -> list[Ranked]:
    return [Ranked(codes), Ranked(codes, -1)] if signed else [Ranked(codes)]


def token_features(
    dictionaries: Mapping["Site", Mapping[str, Dictionary]],
    validation: Iterable["Batch"],
    test: Iterable["Batch"],
    tokens: Tokens,
    tokenizer,
    *,
    seed: int = 0,
    trained_tokens: Mapping[str, int] | None = None,
    by: str = "balanced_accuracy",
    ridge: float = 1e-3,
    fit: Iterable["Batch"] | None = None,
) -> pd.DataFrame:
    """token_features.csv: one row per site, dictionary, labels (real, shuffled), predicate and token.

    by: what a latent is chosen by, "balanced_accuracy" (default) or "auroc"; see `detection.choose`.
    fit: batches (read twice) that the linear probe is fitted on; by default validation, with its thresholds from
    left-one-out scores. Shuffled labels are permuted over each whole split, and choice, threshold, probe and score are
    all made anew from them. trained_tokens: {dictionary name: tokens}, blank for those not in it.
    A token without positives on validation has a row without a latent; one without positives on test, without scores.
    """
    for name, split in (("validation", validation), ("test", test), ("fit", fit)):
        if isinstance(split, Iterator):
            raise ValueError(f"the {name} batches can be read only once; give a stream or a list")
    keyed = {site.key: named for site, named in dictionaries.items()}
    (seen, codes), (new, new_codes) = collect(validation, keyed), collect(test, keyed)
    labellings = list(_labellings(seen, new, tokens, seed))
    texts = [text_of(tokenizer, i) for i in tokens.ids_T]
    about_tokens = {"token": texts, "token_id": tokens.ids_T, "rank": tokens.ranks_T, "count": tokens.counts_T}
    common = about_tokens | {"split": "test", "tokens": len(new), "seed": seed, "appeared_at": None}
    tables = []
    pairs = [(site, name, dictionary) for site, named in dictionaries.items() for name, dictionary in named.items()]
    for site, name, dictionary in track(pairs, "token features", unit="dictionaries"):
        ranks, new_ranks = (ranked(c[site.key][name], dictionary.signed) for c in (codes, new_codes))
        about = {"site": site.hook, "dictionary": name, "kind": dictionary.kind, "k": dictionary.k}
        about |= {"latents": dictionary.latents, "trained_tokens": (trained_tokens or {}).get(name)}
        for which, classes_N, new_classes_N in labellings:
            chosen = choose(ranks, classes_N, len(tokens), by)
            scores = detector_scores(chosen, new_codes[site.key][name], new_ranks[0], new_classes_N)
            tables.append(pd.DataFrame(common | about | which | scores))
    for site, found in _probe_rows(dictionaries, validation, test, fit, labellings, tokens, seed, ridge):
        about = {"site": site.hook, "dictionary": "linear_probe", "kind": "probe", "trained_tokens": None}
        about |= {"k": None, "latents": None, "latent": None, "sign": None}
        for (which, _, new_classes_N), scores in zip(labellings, found, strict=True):
            counted = {"positives": positives(new_classes_N, len(tokens)).numpy()}
            tables.append(pd.DataFrame(common | about | which | scores | counted))
    whole = dict.fromkeys(WHOLE, "Int64")
    return pd.concat([table.astype(whole)[COLUMNS] for table in tables], ignore_index=True)


def _labellings(
    seen: Labels, new: Labels, tokens: Tokens, seed: int
) -> Iterator[tuple[dict[str, str], Tensor, Tensor]]:
    """({labels, predicate}, classes_N on validation, classes_N on test), real labels before shuffled ones."""
    floor = seen.shuffled(seed * 1_000_003 + 1), new.shuffled(seed * 1_000_003 + 2)
    for labels, (on_validation, on_test) in {"real": (seen, new), "shuffled": floor}.items():
        for predicate in PREDICATES:
            about = {"labels": labels, "predicate": predicate}
            yield about, on_validation.classes(predicate, tokens), on_test.classes(predicate, tokens)


def detector_scores(chosen: Detectors, codes: Codes, ranks: Ranked, classes_N: Tensor) -> dict[str, Any]:
    """Columns of the table: what was chosen, and how it does on these codes, whose `Ranked` for sign +1 is given."""
    tokens = len(chosen.latents_T)
    accuracy_T, f1_T = at_threshold(columns(codes, chosen.latents_T) * chosen.signs_T, classes_N, chosen.thresholds_T)
    auroc_T = ranks.auroc(classes_N, tokens)[chosen.latents_T, torch.arange(tokens)]
    auroc_T = torch.where(chosen.signs_T > 0, auroc_T, 1 - auroc_T)
    found = chosen.found_T
    scores = {"threshold": chosen.thresholds_T, "auroc": auroc_T, "balanced_accuracy": accuracy_T, "f1": f1_T}
    table: dict[str, Any] = {name: value.where(found, torch.nan).numpy() for name, value in scores.items()}
    for name, value in (("latent", chosen.latents_T), ("sign", chosen.signs_T)):
        table[name] = pd.array(value.numpy(), "Int64")
        table[name][~found.numpy()] = pd.NA
    return table | {"positives": positives(classes_N, tokens).numpy()}


def _probe_rows(
    sites, validation, test, fit, labellings, tokens: Tokens, seed: int, ridge: float
) -> Iterator[tuple["Site", list[dict]]]:
    """Each site's columns for each labelling: fitted, thresholds chosen on validation, scored on test."""
    seen_JN, new_JN = (torch.stack([labelling[split] for labelling in labellings]) for split in (1, 2))
    fit_JN = seen_JN
    if fit is not None:
        labels, _ = collect(fit, {})
        fit_JN = torch.stack([classes_N for _, classes_N, _ in _labellings(labels, labels, tokens, seed)])
    keys = [site.key for site in sites]
    probes = fit_probes(validation if fit is None else fit, keys, fit_JN, len(tokens), ridge)
    seen_scores = probe_scores(probes, validation, seen_JN, left_out=fit is None)
    new_scores = probe_scores(probes, test, new_JN)
    for site in sites:
        probe = probes.pop(site.key)
        yield site, probe_table(probe, seen_scores.pop(site.key), seen_JN, new_scores.pop(site.key), new_JN)


def appearance(
    snapshots: Iterable[tuple[int, Mapping[str, Mapping[str, Dictionary]]]],
    validation: Iterable["Batch"],
    tokens: Tokens,
    *,
    reached: float = 0.8,
) -> pd.DataFrame:
    """key, dictionary, predicate, token_id, appeared_at: the fewest training tokens at which a snapshot's best latent
    detected the token with balanced accuracy `reached` on validation; tokens that none detected have no row.

    snapshots: (trained tokens, {site.key: {name: Dictionary}}), in any order; validation is read once for each.
    """
    rows: dict[tuple, int] = {}
    for trained, dictionaries in snapshots:
        labels, codes = collect(validation, dictionaries)
        for key, named in dictionaries.items():
            for name, dictionary in named.items():
                ranks = ranked(codes[key][name], dictionary.signed)
                for predicate in PREDICATES:
                    chosen = choose(ranks, labels.classes(predicate, tokens), len(tokens))
                    detected_T = chosen.found_T & (chosen.balanced_accuracy_T >= reached)
                    for token_id in tokens.ids_T[detected_T.numpy()].tolist():
                        place = (key, name, predicate, token_id)
                        rows[place] = min(trained, rows.get(place, trained))
    names = ["key", "dictionary", "predicate", "token_id", "appeared_at"]
    return pd.DataFrame([(*place, trained) for place, trained in rows.items()], columns=names)


def with_appearance(table: pd.DataFrame, appeared: pd.DataFrame) -> pd.DataFrame:
    """The table with appeared_at filled in on the rows of real labels."""
    names = ["key", "dictionary", "predicate", "token_id"]
    known = appeared.set_index(names)["appeared_at"].to_dict()
    keys = table["site"].str.replace(".", "_", regex=False)
    places = zip(keys, table["dictionary"], table["predicate"], table["token_id"], table["labels"], strict=True)
    values = [known.get(tuple(place[:4])) if place[4] == "real" else None for place in places]
    return table.assign(appeared_at=pd.array(values, "Int64"))


def text_of(tokenizer, token_id: int) -> str:
    """A token's text, its spaces kept; untrusted."""
    return tokenizer.decode([int(token_id)], clean_up_tokenization_spaces=False)
