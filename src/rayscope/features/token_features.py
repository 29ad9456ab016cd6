"""Frequency-ordered token features: how well one latent says "current token is v" and "previous token is v".

N vectors, L latents, T tokens, J labellings (real and shuffled labels of each predicate).
Latents, signs, thresholds and hard negatives are chosen on validation; what the table holds was measured on test.
Splits are iterables of Batch that can be read more than once (a stream or a list): validation is read three times, test
twice.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.console import track
from rayscope.dictionaries.base import Codes, Dictionary
from rayscope.escapes import ascii_repr
from rayscope.evaluation.entry import Entry, by_site
from rayscope.features.detection import Detectors, Ranked, choose, columns, scores_auroc, scores_thresholds
from rayscope.features.probes import fit_probes, probe_scores
from rayscope.features.scores import Labelling, scores_on_test, with_floor
from rayscope.features.tokens import Labels, Tokens, text_of

if TYPE_CHECKING:
    from rayscope.model.sites import Site
    from rayscope.streams.stream import Batch

Name = TypeVar("Name", bound=Hashable)
COLUMNS = [
    *("site", "dictionary", "method", "role", "kind", "k", "latents"),
    *("predicate", "token", "token_id", "rank", "count"),
    *("latent", "sign", "threshold", "auroc", "balanced_accuracy", "f1", "recall", "precision", "precision_at_80"),
    *("hard_auroc", "found", "hard_ids", "hard_tokens", "positives"),
    *("labels", "split", "tokens", "trained_tokens", "seed", "appeared_after", "appeared_by", "censored"),
]
WHOLE = ("k", "latents", "latent", "sign", "trained_tokens", "appeared_after", "appeared_by")  # or blank
YES_OR_NO = ("found", "censored")  # or blank


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
    over each whole split; choice, threshold, hard negatives, probe and score are all computed again from them.
    A token without positives on validation has a row without a latent; one without positives on test, without scores.
    """
    for name, split in (("validation", validation), ("test", test)):
        if isinstance(split, Iterator):
            raise ValueError(f"the {name} batches can be read only once; give a stream or a list")
    dictionaries = by_site(entries)
    keyed = {site.key: named for site, named in dictionaries.items()}
    (seen, codes), (new, new_codes) = collect(validation, keyed), collect(test, keyed)
    each = with_floor(seen, new, tokens, seed)
    texts = [text_of(tokenizer, i) for i in tokens.ids_T]
    common = {"token": texts, "token_id": tokens.ids_T, "rank": tokens.ranks_T, "count": tokens.counts_T}
    common |= {"split": "test", "tokens": len(new), "seed": seed}
    common |= dict.fromkeys(("appeared_after", "appeared_by", "censored"))
    tables = []

    def add(labelling: Labelling, about: dict[str, Any], scores: dict[str, Any]) -> None:
        which = {"labels": labelling.labels, "predicate": labelling.predicate}
        tables.append(pd.DataFrame(common | about | which | scores | named(scores["hard_ids"], tokenizer)))

    for entry in track(list(entries), "token features", unit="dictionaries"):
        site, name, dictionary = entry.site, entry.name, entry.dictionary
        about = {"site": site.hook, "dictionary": name, "method": entry.method, "role": entry.role, "k": entry.k}
        about |= {"kind": dictionary.kind, "latents": dictionary.latents}
        about |= {"trained_tokens": dictionary.provenance.get("tokens")}
        pair = codes[site.key][name], new_codes[site.key][name]
        for labelling, (_, scores) in zip(each, detected(*pair, dictionary.signed, each), strict=True):
            add(labelling, about, scores)
    for site, found in probed(list(dictionaries), validation, test, each):
        about = {"site": site.hook, "dictionary": "linear_probe", "method": "linear_probe", "role": "reference"}
        about |= {"kind": "probe"} | dict.fromkeys(("k", "latents", "latent", "sign", "trained_tokens"))
        for labelling, scores in zip(each, found, strict=True):
            add(labelling, about, scores)
    types = dict.fromkeys(WHOLE, "Int64") | dict.fromkeys(YES_OR_NO, "boolean")
    return pd.concat([table.astype(types)[COLUMNS] for table in tables], ignore_index=True)


def named(hard_TH: Tensor, tokenizer) -> dict[str, list[str]]:
    """The hard negatives' ids and texts, those in which the detector is active most often first."""
    ids = [[i for i in ids_H if i >= 0] for ids_H in hard_TH.tolist()]
    texts = [" ".join(ascii_repr(text_of(tokenizer, i)) for i in each) for each in ids]
    return {"hard_ids": [" ".join(map(str, each)) for each in ids], "hard_tokens": texts}


def detected(
    codes: Codes, new_codes: Codes, signed: bool, each: Sequence[Labelling]
) -> Iterator[tuple[Detectors, dict[str, Any]]]:
    """For each labelling the detectors chosen on validation's codes, and what they score on the test's."""
    ranks, new_ranks = ranked(codes, signed), Ranked(new_codes)
    for labelling in each:
        tokens = len(labelling.tokens)
        chosen = choose(ranks, labelling.seen_N, tokens)
        seen_NT, new_NT = (columns(c, chosen.latents_T) * chosen.signs_T for c in (codes, new_codes))
        auroc_T = new_ranks.auroc(labelling.new_N, tokens)[chosen.latents_T, torch.arange(tokens)]
        auroc_T = torch.where(chosen.signs_T > 0, auroc_T, 1 - auroc_T)
        scores = scores_on_test(labelling, seen_NT, new_NT, chosen.thresholds_T, auroc_T, chosen.found_T)
        for name, value_T in (("latent", chosen.latents_T), ("sign", chosen.signs_T)):
            scores[name] = pd.array(value_T.numpy(), "Int64")
            scores[name][~chosen.found_T.numpy()] = pd.NA
        yield chosen, scores


def probed(
    sites: Sequence["Site"], validation: Iterable["Batch"], test: Iterable["Batch"], each: Sequence[Labelling]
) -> Iterator[tuple["Site", list[dict[str, Any]]]]:
    """Each site's probe for each labelling: fitted on validation, with thresholds chosen there, scored on test."""
    tokens = len(each[0].tokens)
    seen_JN, new_JN = (torch.stack(classes) for classes in zip(*((one.seen_N, one.new_N) for one in each), strict=True))
    probes = fit_probes(validation, [site.key for site in sites], seen_JN, tokens)
    seen_scores = probe_scores(probes, validation, seen_JN, left_out=True)
    new_scores = probe_scores(probes, test, new_JN)
    for site in sites:
        fitted_JT = probes.pop(site.key).positives_JT
        found = []
        for labelling, fitted_T, seen_NT, new_NT in zip(
            each, fitted_JT, seen_scores.pop(site.key), new_scores.pop(site.key), strict=True
        ):
            thresholds_T = scores_thresholds(seen_NT, labelling.seen_N)
            auroc_T = scores_auroc(new_NT, labelling.new_N)
            found.append(scores_on_test(labelling, seen_NT, new_NT, thresholds_T, auroc_T, fitted_T > 0))
        yield site, found
