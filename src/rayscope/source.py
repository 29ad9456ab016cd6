"""Source: the model and the packed text of a run, and the streams cut from them.

R rows, C context, D site width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayscope.activations import ActivationStream, permutation
from rayscope.model import LanguageModel
from rayscope.sites import Site
from rayscope.text import PackedText

Windows = Iterator[tuple[Tensor, dict[str, Tensor]]]


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

    def windows(self, split: str, sites: Sequence[Site], tokens: int, rows: int = 16) -> Windows:
        """(tokens_RC, {site.key: x_RCD}) of whole rows of a split, position 0 included, `rows` at a time."""
        packed = self.text[split]
        count = min(len(packed), -(-tokens // self.text.context))
        chosen = permutation(len(packed), self.seed, "evaluation", 0).numpy()[:count]
        for start in range(0, count, rows):
            tokens_RC = torch.from_numpy(packed.tokens[chosen[start : start + rows]].astype(np.int64))
            yield tokens_RC, self.model.activations(tokens_RC.to(self.model.device), sites)

    def provenance(self, site: Site) -> dict[str, Any]:
        text = {"sha256": self.text.fingerprint, "context": self.text.context}
        return {"site": site.hook, "model": self.model.provenance(), "text": text, "precision": self.precision}
