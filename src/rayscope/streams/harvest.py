"""ActivationStream: shuffled activations at every site at once, a function of (seed, batch number).

R rows, C context, N vectors of a batch, D site width.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rayscope.model import LanguageModel
from rayscope.model.sites import Site
from rayscope.seeding import generator_of
from rayscope.streams.positions import LATER, in_stream, stream_sizes
from rayscope.streams.stream import Batch, Stream
from rayscope.text import Rows


class ActivationStream(Stream):
    """A sized, stateful stream of batches of `batch_size` vectors, `tokens` in all.

    Rows are read in an order drawn for each pass over the text; as many whole batches of their positions as
    `round_tokens` holds are harvested and shuffled together. Both orders come from (seed, number), so a batch depends
    on (seed, batch number) alone, not on the sites nor on what was read before; the whole state is the next batch's
    number.
    Position 0 is left out by index, special tokens by id: a pass holds each other position once. Batches are drawn from
    the harvested rows around those tokens, so leaving them out copies nothing.

    exclude: ids of the special tokens. A position's own token counts: the one after a separator stays.
    precision: "fp32", or "bf16" for autocast in the harvest's matmuls (activations come out as float32 in both).
    Raises ValueError for a round or a text smaller than a batch, and for activations that are not finite.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: Rows,
        sites: Sequence[Site],
        *,
        tokens: int,
        batch_size: int = 1024,
        round_tokens: int = 65_536,
        seed: int = 0,
        precision: str = "fp32",
        harvest_rows: int = 16,
        exclude: Sequence[int] = (),
        option: str = "tokens",
    ):
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={precision}: fp32 or bf16")
        super().__init__(sites, tokens=tokens, batch_size=batch_size, option=option)
        self.context = rows.tokens.shape[1]
        self.batches_a_round = round_tokens // batch_size
        if not self.batches_a_round:
            raise ValueError(
                f"stream.round_tokens={round_tokens} is less than one batch of {batch_size}; "
                "raise it, or lower stream.batch_size"
            )
        self.exclude = tuple(exclude)
        self.sizes_R = stream_sizes(rows.tokens, self.exclude)
        self.pass_size = int(self.sizes_R.sum())
        if self.pass_size < batch_size:
            raise ValueError(
                f"text: {self.pass_size} positions, without position 0 and special tokens, are less than one batch of "
                f"{batch_size}; give more text, or lower stream.batch_size"
            )
        self.model, self.rows, self.seed, self.precision = model, rows, seed, precision
        self.harvest_rows = harvest_rows
        self._rounds: dict[str, tuple[int, Batch, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __getitem__(self, number: int) -> Batch:
        return self._cut("harvested", self.harvest, number)

    def labels(self, number: int) -> Batch:
        """The batch without its activations; the model is not run."""
        return self._cut("read", self.read, number)

    def _cut(self, kind: str, whole: Callable[[np.ndarray], Batch], number: int) -> Batch:
        """Batch `number` of its shuffled round, which stays in memory until another is asked for."""
        round_number, place = divmod(number, self.batches_a_round)
        if self._rounds.get(kind, (None,))[0] != round_number:
            self._rounds.pop(kind, None)  # two rounds never lie in memory together
            row_numbers, order = self.plan(round_number)
            self._rounds[kind] = (round_number, whole(row_numbers), order)
        _, found, order = self._rounds[kind]
        return found.take(order[place * self.batch_size : (place + 1) * self.batch_size])

    def plan(self, number: int) -> tuple[np.ndarray, Tensor]:
        """(row numbers, order): the rows that hold a round's positions, and these among the harvested ones, shuffled.

        Rounds are equal stretches of an endless sequence of shuffled passes: one may begin and end inside a row.
        """
        size = self.batches_a_round * self.batch_size
        start, stop, pieces, skipped = number * size, (number + 1) * size, [], 0
        for pass_number in range(start // self.pass_size, (stop - 1) // self.pass_size + 1):
            rows_R = torch.randperm(len(self.rows), generator=generator_of("pass", self.seed, pass_number)).numpy()
            ends_R = self.sizes_R[rows_R].cumsum()
            first = max(start - pass_number * self.pass_size, 0)
            last = min(stop - pass_number * self.pass_size, self.pass_size) - 1
            low, high = ends_R.searchsorted([first, last], side="right")  # a row ends after its own positions
            pieces.append(rows_R[low : high + 1])
            if len(pieces) == 1:
                skipped = first - int(ends_R[low] - self.sizes_R[rows_R[low]])
        row_numbers = np.concatenate(pieces)
        kept_N = np.flatnonzero(in_stream(self.rows.tokens[row_numbers], self.exclude)[:, LATER])[
            skipped : skipped + size
        ]
        order_N = torch.randperm(size, generator=generator_of("round", self.seed, number))
        return row_numbers, torch.from_numpy(kept_N)[order_N]

    def harvest(self, row_numbers: np.ndarray) -> Batch:
        """Activations at the rows' positions 1, 2, ..., in the order of the text."""
        size, per_row = len(row_numbers), self.context - 1
        buffers = {site.key: torch.empty(size * per_row, site.width) for site in self.sites}
        tokens_RC = torch.from_numpy(self.rows.tokens[row_numbers].astype(np.int64))
        for start in range(0, size, self.harvest_rows):
            part = tokens_RC[start : start + self.harvest_rows]
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                found = self.model.activations(part, self.sites)
            for site in self.sites:
                x_ND = buffers[site.key][start * per_row : (start + len(part)) * per_row]
                x_ND.view(len(part), per_row, -1).copy_(found[site.key][:, LATER])  # leaves position 0 out, in one copy
                check_finite(x_ND, site, self.model.name)
        return Batch(*self.read(row_numbers).labels, activations=buffers)

    def read(self, row_numbers: np.ndarray) -> Batch:
        """What is known of the rows' positions 1, 2, ... without the model."""
        tokens_RC = torch.from_numpy(self.rows.tokens[row_numbers].astype(np.int64))
        documents_RC = torch.from_numpy(self.rows.documents[row_numbers].astype(np.int64))
        positions_N = torch.arange(1, self.context).repeat(len(row_numbers))
        return Batch(
            tokens_RC[:, LATER].flatten(),
            tokens_RC[:, :-1].flatten(),
            documents_RC[:, LATER].flatten(),
            positions_N,
            {},
        )


def check_finite(x_ND: Tensor, site: Site, model: str) -> None:
    if not x_ND.sum().isfinite():  # one pass, no mask; a sum that overflows alone is no fault
        count = int((~torch.isfinite(x_ND)).any(-1).sum())
        if count:
            raise ValueError(
                f"activations at {site.hook} of {model}: {count} of {len(x_ND)} vectors hold NaN or infinity"
            )
