"""The tokens that latents are tested for, and which of them each vector has.

N vectors, T tokens.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayscope.seeding import generator_of


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

    def shuffled(self, *key: str | int) -> "Labels":
        """The same labels, permuted by the key: every count stays, every relation to the activations goes."""
        order_N = torch.randperm(len(self), generator=generator_of("shuffled labels", *key))
        return Labels(self.current_N[order_N], self.previous_N[order_N], self.positions_N[order_N])

    def ids(self, predicate: str) -> Tensor:
        """(N): the token id that each vector has by that predicate."""
        return {"current": self.current_N, "previous": self.previous_N}[predicate]

    def classes(self, predicate: str, tokens: Tokens) -> Tensor:
        """classes_N: each label's place in `tokens`, T for a token that is not among them."""
        labels_N = self.ids(predicate)
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
            f"features.min_count={min_count}: no token occurs so often in the validation and the test text "
            "that is read; "
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


def text_of(tokenizer, token_id: int) -> str:
    """A token's text, its spaces kept; untrusted."""
    return tokenizer.decode([int(token_id)], clean_up_tokenization_spaces=False)
