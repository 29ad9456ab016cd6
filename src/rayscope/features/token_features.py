"""Frequency-ordered token features: how well one latent says "current token is v" and "previous token is v".

N vectors, L latents, T tokens, J labellings (real and shuffled labels of each predicate).
Latents, signs and thresholds are chosen on validation; what the table holds was measured on test. Splits are iterables
of Batch that can be read more than once (a stream or a list): validation is read three times, test twice.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.console import track
from rayscope.dictionaries.base import Codes, Dictionary
from rayscope.evaluation.entry import Entry, by_site
from rayscope.features.detection import Detectors, Ranked, at_threshold, choose, columns, positives
from rayscope.features.probes import fit_probes, probe_scores, probe_table
from rayscope.features.tokens import Labels, Tokens, text_of

if TYPE_CHECKING:
    from rayscope.model.sites import Site
    from rayscope.streams.stream import Batch

Name = TypeVar("Name", bound=Hashable)
PREDICATES = ("current", "previous")
COLUMNS = [
    *("site", "dictionary", "method", "role", "kind", "k", "latents"),
    *("predicate", "token", "token_id", "rank", "count"),
    *("latent", "sign", "threshold", "auroc", "balanced_accuracy", "f1", "positives"),
    *("labels", "split", "tokens", "trained_tokens", "seed", "appeared_at"),
]
WHOLE = ("k", "latents", "latent", "sign", "trained_tokens", "appeared_at")  # whole numbers that may be blank


@torch.no_grad()
def collect(
    batches: Iterable["Batch"], dictionaries: Mapping[str, Mapping[Name, Dictionary]]
) -> tuple[Labels, dict[str, dict[Name, Codes]]]:
    """The labels and every dictionary's codes {site.key: {name: Codes}}, in one pass; only sparse codes are kept."""
    labels: list[tuple[Tensor, Tensor, Tensor]] = []
    parts: dict[str, dict[Name, list[Codes]]] = {
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
    entries: Sequence[Entry],
    validation: Iterable["Batch"],
    test: Iterable["Batch"],
    tokens: Tokens,
    tokenizer,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """token_features.csv: one row per entry or probe, labels (real, shuffled), predicate and token.

    A linear probe stands for what a site's vectors tell of a token at best.
    The linear probe is fitted on validation, with thresholds from left-one-out scores. Shuffled labels are permuted
    over each whole split; choice, threshold, probe and score are all computed again from them.
    A token without positives on validation has a row without a latent; one without positives on test, without scores.
    """
    for name, split in (("validation", validation), ("test", test)):
        if isinstance(split, Iterator):
            raise ValueError(f"the {name} batches can be read only once; give a stream or a list")
    dictionaries = by_site(entries)
    keyed = {site.key: named for site, named in dictionaries.items()}
    (seen, codes), (new, new_codes) = collect(validation, keyed), collect(test, keyed)
    labellings = list(_labellings(seen, new, tokens, seed))
    texts = [text_of(tokenizer, i) for i in tokens.ids_T]
    about_tokens = {"token": texts, "token_id": tokens.ids_T, "rank": tokens.ranks_T, "count": tokens.counts_T}
    common = about_tokens | {"split": "test", "tokens": len(new), "seed": seed, "appeared_at": None}
    tables = []
    for entry in track(list(entries), "token features", unit="dictionaries"):
        site, name, dictionary = entry.site, entry.name, entry.dictionary
        ranks, new_ranks = (ranked(c[site.key][name], dictionary.signed) for c in (codes, new_codes))
        about = {"site": site.hook, "dictionary": name, "method": entry.method, "role": entry.role, "k": entry.k}
        about |= {"kind": dictionary.kind, "latents": dictionary.latents}
        about |= {"trained_tokens": dictionary.provenance.get("tokens")}
        for which, classes_N, new_classes_N in labellings:
            chosen = choose(ranks, classes_N, len(tokens))
            scores = detector_scores(chosen, new_codes[site.key][name], new_ranks[0], new_classes_N)
            tables.append(pd.DataFrame(common | about | which | scores))
    for site, found in _probe_rows(list(dictionaries), validation, test, labellings, len(tokens)):
        about = {"site": site.hook, "dictionary": "linear_probe", "method": "linear_probe", "role": "reference"}
        about |= {"kind": "probe", "trained_tokens": None}
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
    floor = seen.shuffled(seed, "validation"), new.shuffled(seed, "test")
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
    sites: Sequence["Site"],
    validation: Iterable["Batch"],
    test: Iterable["Batch"],
    labellings: Sequence[tuple[dict[str, str], Tensor, Tensor]],
    tokens: int,
) -> Iterator[tuple["Site", list[dict]]]:
    """Each site's columns for each labelling: fitted on validation, with thresholds chosen there, scored on test."""
    seen_JN = torch.stack([seen_N for _, seen_N, _ in labellings])
    new_JN = torch.stack([new_N for _, _, new_N in labellings])
    probes = fit_probes(validation, [site.key for site in sites], seen_JN, tokens)
    seen_scores = probe_scores(probes, validation, seen_JN, left_out=True)
    new_scores = probe_scores(probes, test, new_JN)
    for site in sites:
        probe = probes.pop(site.key)
        yield site, probe_table(probe, seen_scores.pop(site.key), seen_JN, new_scores.pop(site.key), new_JN)
