"""Recoding: the entries of a comparison under other coders than their own."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches

import torch
from torch.nn import functional as F

from rayscope.dictionaries import Dictionary, Linear, recoded
from rayscope.dictionaries.coders import SEARCHES
from rayscope.dictionaries.learned.k_sparse import KSparse
from rayscope.dictionaries.recoding import REFINED
from rayscope.evaluation.entry import Entry

OWN = "own"  # the encoder that a dictionary was learned or fitted with
CODERS = (OWN, REFINED, *SEARCHES)
NEARLY = 1e-4  # cosines below this are those of orthogonal directions


def check_coders(coders: Sequence[str], option: str = "evaluation.coders") -> None:
    """Raises ValueError for none, for an unknown one and for one that is there twice."""
    such = f"{', '.join(CODERS[:-1])} or {CODERS[-1]}"
    if not coders:
        raise ValueError(f"{option}=[]: give one at least of {such}")
    for coder in coders:
        if coder not in CODERS:
            near = get_close_matches(coder, CODERS, n=1)
            raise ValueError(f"{option}: no coder {coder!r}; {f'nearest: {near[0]}' if near else f'it is {such}'}")
    if len(set(coders)) < len(coders):
        raise ValueError(f"{option}=[{','.join(coders)}]: give each coder once")


def under(entries: Iterable[Entry], coders: Sequence[str]) -> list[Entry]:
    """Each entry under each of the coders, its names with the coder's at the end.

    Codes that an entry has already are left out (see `alike`), as are refined codes of what has none. What has its own
    coder alone stays (see `is_fixed`).
    Raises ValueError if a name is another entry's.
    """
    entries, found = list(entries), []
    names = {(entry.site, entry.name) for entry in entries}
    for entry in entries:
        same = alike(entry.dictionary)
        if is_fixed(entry) or {OWN, *same} & set(coders):
            found.append(entry)
        if is_fixed(entry):
            continue
        for coder in coders:
            if coder in (OWN, *same) or (coder == REFINED and not can_be_refined(entry.dictionary)):
                continue
            name = f"{entry.name}_{coder}"
            if (entry.site, name) in names:
                raise ValueError(
                    f"{name} at {entry.site.hook} is the name of {entry.name} coded by {coder} too; rename the folder"
                )
            found.append(replace(entry, dictionary=recoded(entry.dictionary, coder), coder=coder, name=name))
    return found


def is_fixed(entry: Entry) -> bool:
    """Has it no other coder: a support or bits that are the same on all vectors, or another site to reconstruct?"""
    dictionary = entry.dictionary
    return dictionary.fixed_support or dictionary.allocation_L is not None or entry.site.output != entry.site


def alike(dictionary: Dictionary) -> tuple[str, ...]:
    """The coders that give its own codes: of given directions the one they have, or all, if one code is the projection
    on a direction whatever the others are.
    """
    if isinstance(dictionary, KSparse) and dictionary.refine is not None:
        return (REFINED,)
    if not isinstance(dictionary, Linear) or dictionary.fixed_support:
        return ()
    return tuple(SEARCHES) if dictionary.k == 1 or are_orthogonal(dictionary) else (dictionary.coder,)


def can_be_refined(dictionary: Dictionary) -> bool:
    """Has it an encoder that puts k latents first? (Whitened ones learn in another metric than x.)"""
    return isinstance(dictionary, KSparse) and not dictionary.whiten


@torch.no_grad()
def are_orthogonal(dictionary: Dictionary) -> bool:
    """Are its directions orthogonal, or, if they are rays, opposite?"""
    latents, width = dictionary.directions.shape
    if latents > (width if dictionary.signed else 2 * width):
        return False
    W_LD = F.normalize(dictionary.directions.detach().double(), eps=1e-30)
    cosines_LL = (W_LD @ W_LD.T).fill_diagonal_(0)
    opposite_LL = (cosines_LL < NEARLY - 1) & (not dictionary.signed)
    return bool(((cosines_LL.abs() < NEARLY) | opposite_LL).all())
