"""A dictionary whose latents are coordinates, a site, a tokenizer and batches: for the tests of token features."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from rayscope.dictionaries.base import Codes, Dictionary
from rayscope.features.tokens import Tokens
from rayscope.streams.stream import Batch


class Coordinates(Dictionary):
    """Latent l is coordinate l of x, or what is left of it over a threshold. No `kind`: it is not for saving."""

    def __init__(self, width, signed=False, zeroed=()):
        super().__init__(width, width, width)
        self.kind, self.signed = "coordinates", signed
        self.register_buffer("scale", torch.ones(width).index_fill(0, torch.tensor(zeroed, dtype=torch.int64), 0))

    @property
    def directions(self):
        return self.scale.diag()

    @property
    def bias(self):
        return torch.zeros(self.width)

    def encode_sparse(self, x_ND, tokens_N=None):
        return Codes.of_dense((x_ND if self.signed else x_ND.relu()) * self.scale)


@dataclass(frozen=True)
class Place:
    hook: str = "blocks.0.hook_resid_post"

    @property
    def key(self):
        return self.hook.replace(".", "_")

    @property
    def output(self):
        return self


SITE = Place()
TOKENIZER = SimpleNamespace(
    decode=lambda ids, clean_up_tokenization_spaces: "".join(f"<{i}>" for i in ids), all_special_ids=[9, 13]
)


def batches_of(current_N, previous_N, x_ND, size=500):
    parts = zip(current_N.split(size), previous_N.split(size), x_ND.split(size), strict=True)
    return [Batch(c, p, torch.zeros_like(c), torch.arange(len(c)), {SITE.key: x}) for c, p, x in parts]


def splits_of(batches):
    joined = Batch.join(batches)
    return joined.tokens_N, joined.previous_N, joined.activations[SITE.key]


def tokens_of(*ids):
    return Tokens(np.array(ids), np.arange(1, len(ids) + 1), np.full(len(ids), 100))
