"""measure: every entry and the references on test documents, in one reading of them.

R rows, C context, N vectors, D site width, G documents.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayscope.console import progress
from rayscope.dictionaries.code_length import VALUE_BITS
from rayscope.evaluation import metrics
from rayscope.evaluation.calibration import calibrate_codes
from rayscope.evaluation.codecs import Codec, DictionaryCodec
from rayscope.evaluation.entry import Entry, by_site
from rayscope.evaluation.measurement import Measurement
from rayscope.evaluation.meter import SiteSums
from rayscope.evaluation.quantisation import LEVELS, MOST
from rayscope.evaluation.recoding import check_coders
from rayscope.evaluation.seconds import Stopwatch
from rayscope.evaluation.spliced import spliced_views, validation_errors
from rayscope.model import LanguageModel
from rayscope.model.sites import Site, with_outputs
from rayscope.model.splicing import CleanPass
from rayscope.seeding import generator_of
from rayscope.streams.positions import LATER, VIEWS, keep_first
from rayscope.streams.windows import Window, read_rows
from rayscope.text import Rows

LOGITS = 2**26  # elements of [R, C, V] that one pass may hold


def check_options(
    *,
    tokens: int,
    splice_tokens: int,
    validation_tokens: int,
    value_bits: Sequence[int],
    levels: str,
    coders: Sequence[str],
    draws: int,
    recalibrate: bool = False,
    context: int = 1,
) -> None:
    """Raises ValueError for an option of `evaluation` from which no number could be computed."""
    for name, value in (("tokens", tokens), ("splice_tokens", splice_tokens)):
        if value < context:
            raise ValueError(
                f"evaluation.{name}={value} is less than one row of {context} token{'s' * (context > 1)}; raise it"
            )
    if validation_tokens < 1 and (value_bits or validation_tokens < 0):
        raise ValueError(
            f"evaluation.validation_tokens={validation_tokens}: the levels of values are fitted there; at least 1, "
            "or with evaluation.value_bits=[] 0"
        )
    if recalibrate and validation_tokens < context:
        raise ValueError(
            f"evaluation.validation_tokens={validation_tokens}: thresholds are set there with "
            f"evaluation.recalibrate=true; at least one row of {context}"
        )
    wrong = [b for b in value_bits if not 1 <= b < MOST]
    if wrong or len(set(value_bits)) < len(value_bits):
        raise ValueError(
            f"evaluation.value_bits={list(value_bits)}: whole numbers from 1 to {MOST - 1}, each once, or [] for "
            "values as they are"
        )
    if levels not in LEVELS:
        raise ValueError(f"evaluation.levels={levels}: one of {', '.join(LEVELS)}")
    check_coders(coders)
    if draws < 0 or 0 < draws < metrics.FEWEST_DRAWS:
        raise ValueError(
            f"evaluation.draws={draws}: at least {metrics.FEWEST_DRAWS} for intervals, or 0 for a table without any"
        )


def measure(
    model: LanguageModel,
    rows: Rows,
    entries: Sequence[Entry],
    references: Mapping[Site, Mapping[str, Codec]],
    validation: Iterable[Window],
    *,
    tokens: int,
    splice_tokens: int,
    value_bits: Sequence[int] = (VALUE_BITS,),
    levels: str = "lloyd",
    seed: int = 0,
    split: str = "test",
    text: str = "",
    stopwatch: Stopwatch | None = None,
) -> Measurement:
    """Every entry, and the references of its site.

    Reconstruction is measured on `tokens` of the split, loss and KL on the first `splice_tokens` of those, all in fp32.
    Special tokens, on which nothing is trained, are left out of both (see `positions.coded`): they keep their
    activations.

    text: what tables call the text that the rows are of. stopwatch: keeps how long encoding takes.

    validation: whole rows, on which each latent's levels and frequency are fitted. A dictionary encodes once and is
    measured with its values on 2^b levels for each b of value_bits (see `Quantiser`), or, if there is none, as they
    are; which of these points are spliced, `spliced_views` says.
    """
    context = rows.tokens.shape[1]
    for name, value in (("tokens", tokens), ("splice_tokens", splice_tokens)):
        if value < context:
            raise ValueError(f"{name}={value} is less than one row of {context}; raise it")
    chosen = rows_read(rows, tokens, seed)
    spliced = chosen[: splice_tokens // context]
    numbers = torch.from_numpy(np.unique(rows.documents[chosen]).astype(np.int64))
    seen = calibrate_codes(by_site(entries), validation, stopwatch)
    sites = {}
    for site, codecs in references.items():
        coded, errors = {}, {}
        for entry in (entry for entry in entries if entry.site == site):
            known = seen[site].pop(entry.name)  # whose values are freed before the next one's are sorted
            coded[entry.name] = DictionaryCodec(entry.dictionary, known, value_bits, levels)
            errors[entry] = validation_errors(coded[entry.name], known)
        sites[site] = SiteSums(coded | dict(codecs), site.output.width, len(numbers), spliced_views(errors))
    listed = with_references(entries, references)
    clean_G, predicted_G = torch.zeros(2, len(numbers), dtype=torch.float64)
    with progress("evaluating", len(listed) * len(chosen) * context) as advance, torch.no_grad():
        for window, clean in passes(model, rows, chosen, len(spliced), list(sites)):
            window = replace(window, documents_RC=torch.searchsorted(numbers, window.documents_RC))
            if clean:
                add(clean_G, window, clean.loss_RC)
                add(predicted_G, window, torch.ones_like(clean.loss_RC))
            for site, sums in sites.items():
                measure_site(site, sums, window, clean, advance)
    return Measurement(listed, sites, clean_G, predicted_G, split, len(chosen) * context, len(spliced) * context, text)


def passes(
    model: LanguageModel, rows: Rows, chosen: np.ndarray, spliced: int, sites: Sequence[Site]
) -> Iterator[tuple[Window, CleanPass | None]]:
    """Windows of the chosen rows, as many as LOGITS allows at a time; the first `spliced` rows with a clean pass."""
    step = max(1, LOGITS // (rows.tokens.shape[1] * model.vocabulary))
    read = with_outputs(sites)
    for start, stop in pairwise([*range(0, spliced, step), *range(spliced, len(chosen), step), len(chosen)]):
        tokens_RC, documents_RC = read_rows(rows, chosen[start:stop])
        clean = CleanPass.run(model, tokens_RC, read) if start < spliced else None
        activations = clean.activations if clean else model.activations(tokens_RC, read)
        yield Window(tokens_RC, documents_RC, activations, model.special_ids), clean


def measure_site(
    site: Site, sums: SiteSums, window: Window, clean: CleanPass | None, advance: Callable[[int], None]
) -> None:
    """Adds the window's vectors to the sums of every codec of a site; given a clean pass, the cost of splices too."""
    vectors = window.at(site)
    sums.variance.update(vectors)
    if clean:
        for view in VIEWS:
            add(sums.zero[view], window, splice(window, clean, site, torch.zeros_like(vectors.target_ND), view)[0])
    for meter in sums.meters.values():
        for point, x_hat_ND in meter.reconstruct(vectors):
            if clean:
                for view in point.loss:
                    loss_RC, kl_RC = splice(window, clean, site, x_hat_ND, view)
                    add(point.loss[view], window, loss_RC)
                    add(point.kl[view], window, kl_RC)
        advance(window.tokens_RC.numel())


def splice(window: Window, clean: CleanPass, site: Site, x_hat_ND: Tensor, view: str) -> tuple[Tensor, Tensor]:
    """(loss, KL): position 0 keeps its own activation (excluded), or is replaced too (included)."""
    x_RCD = clean.activations[site.output.key]
    x_hat_RCD = window.in_rows(x_hat_ND, x_RCD)
    return clean.spliced(site.output, keep_first(x_RCD, x_hat_RCD) if view == "excluded" else x_hat_RCD)


def add(sums_G: Tensor, window: Window, values_RC: Tensor) -> None:
    """Adds a value of each predicted token to its document's sum."""
    sums_G.index_add_(0, window.documents_RC[:, LATER].flatten(), values_RC.flatten().double().cpu())


def with_references(entries: Sequence[Entry], references: Mapping[Site, Mapping[str, Any]]) -> list[Entry]:
    """The entries of each site, then its references, whose codec stands in for a dictionary."""
    listed = []
    for site, codecs in references.items():
        listed += [entry for entry in entries if entry.site == site]
        listed += [Entry(site, name, "reference", None, None, codec, name) for name, codec in codecs.items()]
    return listed


def rows_read(rows: Rows, tokens: int, seed: int) -> np.ndarray:
    """The rows of a split that are measured, in order; those for fewer tokens are the first of these."""
    order_R = torch.randperm(len(rows), generator=generator_of("evaluation", seed))
    return order_R.numpy()[: tokens // rows.tokens.shape[1]]


def documents_predicted(rows: Rows, tokens: int, seed: int) -> int:
    """Of how many documents a token is predicted in the rows measured (see `Measurement.spliced_documents`)."""
    return len(np.unique(rows.documents[rows_read(rows, tokens, seed)][:, LATER]))
