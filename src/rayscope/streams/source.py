"""Source: the model and the packed text of a run, and the streams cut from them.

R rows, C context, D site width.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rayscope.model import LanguageModel
from rayscope.model.sites import Site
from rayscope.seeding import generator_of
from rayscope.streams.harvest import ActivationStream
from rayscope.streams.positions import stream_sizes
from rayscope.streams.windows import Window, read_rows
from rayscope.text import PackedText


@dataclass(frozen=True)
class Source:
    """Where activations come from: the model, the packed text, and how the stream is cut."""

    model: LanguageModel
    text: PackedText
    seed: int = 0
    batch_size: int = 1024
    round_tokens: int = 65_536
    precision: str = "fp32"

    def stream(
        self, split: str, sites: Sequence[Site], tokens: int, precision: str | None = None, option: str = "tokens"
    ) -> ActivationStream:
        """Special tokens are left out. At most one pass over a held-out split; training text is passed over as often as
        the tokens need.

        option: what the user calls `tokens`. Raises ValueError if they, or the split, are less than one batch.
        """
        rows, exclude = self.text[split], self.model.special_ids
        round_tokens = min(self.round_tokens, tokens)
        if split != "train" and tokens >= self.batch_size:
            positions = int(stream_sizes(rows.tokens, exclude).sum())
            there = positions // self.batch_size
            if not there:
                raise ValueError(
                    f"text: split {split} has {positions} positions, without position 0 and special tokens: less than "
                    f"one batch of {self.batch_size}; lower stream.batch_size, or give more text"
                )
            batches = min(tokens // self.batch_size, there)
            rounds = -(-batches // max(1, round_tokens // self.batch_size))
            a_round = min(-(-batches // rounds), there // rounds)  # equal rounds, none of which begins a second pass
            round_tokens = a_round * self.batch_size
            tokens = min(batches, rounds * a_round) * self.batch_size
        return ActivationStream(
            self.model,
            rows,
            sites,
            tokens=tokens,
            batch_size=self.batch_size,
            round_tokens=round_tokens,
            seed=self.seed,
            precision=precision or self.precision,
            exclude=exclude,
            option=option,
        )

    def windows(self, split: str, sites: Sequence[Site], tokens: int, rows: int = 16) -> Iterator[Window]:
        """At least `tokens` tokens in whole rows of a split, `rows` rows at a time."""
        packed = self.text[split]
        count = min(len(packed), -(-tokens // self.text.context))
        chosen = torch.randperm(len(packed), generator=generator_of("evaluation", self.seed)).numpy()[:count]
        for start in range(0, count, rows):
            tokens_RC, documents_RC = read_rows(packed, chosen[start : start + rows])
            activations = self.model.activations(tokens_RC, sites)
            yield Window(tokens_RC, documents_RC, activations, self.model.special_ids)

    def fingerprints(self) -> dict[str, str]:
        """What a run that resumes must read as it did before: {text (with its tokenizer and context), model}."""
        about = json.dumps([self.model.fingerprint, self.model.architecture, self.model.special_ids])
        return {"text": self.text.fingerprint, "model": hashlib.sha256(about.encode()).hexdigest()}

    def provenance(self, site: Site) -> dict[str, Any]:
        about = {"model": self.model.provenance(), "text": self.text.provenance, "precision": self.precision}
        return {"site": site.hook, **about}
