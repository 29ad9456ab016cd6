"""Thresholds of saved dictionaries set again on other text, on copies: a mean number of codes is a matter of text.

N vectors, D site width.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from rayscope.dictionaries import Dictionary, Learned
from rayscope.evaluation.entry import Entry
from rayscope.streams.windows import Window
from rayscope.text import said


def set_to_data(dictionary: Dictionary) -> list[Learned]:
    """The learned dictionaries in it, itself or the one that it recodes, whose `calibrate` sets something."""
    learned = (part for part in dictionary.modules() if isinstance(part, Learned))
    return [part for part in learned if type(part).calibrate is not Learned.calibrate]


def calibrated_on(dictionary: Dictionary) -> str:
    """The text on which its threshold was set, as tables call it; empty if it has none that is set to data."""
    about = dictionary.provenance
    return said(about.get("calibrated_on", about.get("text"))) if set_to_data(dictionary) else ""


@torch.no_grad()
def recalibrated(entries: Sequence[Entry], validation: Iterable[Window], text: dict[str, Any]) -> list[Entry]:
    """The entries, with copies of those dictionaries that have a threshold, set on the later positions of validation.

    text: its provenance. Raises ValueError if there is no such position.
    """
    chosen = [entry for entry in entries if set_to_data(entry.dictionary)]
    parts = {site: [] for site in dict.fromkeys(entry.site for entry in chosen)}
    for window in validation if parts else ():
        for site, found in parts.items():
            vectors = window.at(site)
            found.append(vectors.take(~vectors.first_N))
    copies = {}
    for entry in chosen:
        if not sum(len(vectors.x_ND) for vectors in parts[entry.site]):
            raise ValueError("evaluation.recalibrate=true: validation text has no position to set thresholds on")
        x_ND, tokens_N = (torch.cat([getattr(v, name) for v in parts[entry.site]]) for name in ("x_ND", "tokens_N"))
        dictionary = copy.deepcopy(entry.dictionary)
        for part in set_to_data(dictionary):
            part.calibrate(x_ND, tokens_N.to(x_ND.device))
        dictionary.provenance = {**dictionary.provenance, "calibrated_on": text}
        copies[id(entry)] = replace(entry, dictionary=dictionary)
    return [copies.get(id(entry), entry) for entry in entries]
