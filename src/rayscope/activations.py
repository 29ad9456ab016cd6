"""Stream: batches by number. ActivationStream: shuffled activations at every site at once, a function of (seed, batch number).

R rows, C context, N vectors of a batch, D site width.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayscope.model import LanguageModel
from rayscope.sites import Site
from rayscope.text import Rows


@dataclass(frozen=True)
class Batch:
    """N positions of the text, the same at every site. `previous` is the token before, at a document's start the separator."""

    tokens_N: Tensor
    previous_N: Tensor
    documents_N: Tensor
    positions_N: Tensor
    activations: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.tokens_N)

    @property
    def labels(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.tokens_N, self.previous_N, self.documents_N, self.positions_N

    def to(self, device: torch.device | str) -> "Batch":
        move = {key: x.to(device, non_blocking=True) for key, x in self.activations.items()}
        return Batch(*(t.to(device, non_blocking=True) for t in self.labels), activations=move)

    def take(self, chosen: Tensor) -> "Batch":
        taken = {key: x.index_select(0, chosen) for key, x in self.activations.items()}
        return Batch(*(t[chosen] for t in self.labels), activations=taken)

    @classmethod
    def join(cls, batches: Iterable["Batch"]) -> "Batch":
        """One batch of all the vectors, in order."""
        parts = list(batches)
        if not parts:
            raise ValueError("batches: none was given; join needs at least one")
        whole = {key: torch.cat([part.activations[key] for part in parts]) for key in parts[0].activations}
        return cls(*(torch.cat(each) for each in zip(*(part.labels for part in parts), strict=True)), activations=whole)


class Stream(ABC):
    """What dictionaries train on and baselines fit from: `length` batches of `batch_size` vectors at every site.

    A subclass makes batch `number` from the number alone (any number from 0 on, past the length too), on the CPU, so
    the whole state is the next batch's number and a resumed run sees what the uninterrupted one would. Sized, because
    Lightning loses a batch at each resume of an unsized one. device: where training on it runs.

    option: what the user calls `tokens`, for the message if they are less than a batch.
    """

    def __init__(self, sites: Sequence[Site], *, tokens: int, batch_size: int, option: str = "tokens"):
        if batch_size < 1:
            raise ValueError(f"stream.batch_size={batch_size}: at least 1")
        if tokens < batch_size:
            raise ValueError(
                f"{option}={tokens} is less than one batch of {batch_size}; raise it, or lower stream.batch_size"
            )
        self.sites, self.batch_size, self.length = tuple(sites), batch_size, tokens // batch_size
        self.next_batch = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @abstractmethod
    def __getitem__(self, number: int) -> Batch: ...

    def labels(self, number: int) -> Batch:
        """The batch without its activations, which a subclass need not make for it."""
        return Batch(*self[number].labels, activations={})

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the state on; at the end the state returns to the first."""
        while self.next_batch < self.length:
            self.next_batch += 1  # before the batch goes out: a checkpoint taken after it must not repeat it
            yield self[self.next_batch - 1]
        self.next_batch = 0

    def state_dict(self) -> dict[str, int]:
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next_batch = state["next_batch"]


class DerivedStream(Stream):
    """The batches and labels of `real` with other activations, which a subclass makes; its length, unless `tokens` says."""

    def __init__(self, real: Stream, sites: Sequence[Site] | None = None, tokens: int | None = None):
        tokens = tokens if tokens is not None else len(real) * real.batch_size
        super().__init__(real.sites if sites is None else sites, tokens=tokens, batch_size=real.batch_size)
        self.real = real

    @property
    def device(self) -> torch.device:
        return self.real.device

    def labels(self, number: int) -> Batch:
        return self.real.labels(number)


class ActivationStream(Stream):
    """A sized, stateful stream of batches of `batch_size` vectors, `tokens` in all.

    Rows are read in an order drawn anew for each pass over the text; as many whole batches of their positions as
    `round_tokens` holds are harvested and shuffled together. Both orders come from (seed, number), so a batch depends on
    (seed, batch number) alone, not on the sites nor on what was read before; the whole state is the next batch's number.
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
                f"stream.round_tokens={round_tokens} is less than one batch of {batch_size}; raise it, or lower stream.batch_size"
            )
        self.exclude = tuple(exclude)
        self.sizes_R = stream_positions(rows, self.exclude)
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
            rows_R = permutation(len(self.rows), self.seed, "pass", pass_number).numpy()
            ends_R = self.sizes_R[rows_R].cumsum()
            first = max(start - pass_number * self.pass_size, 0)
            last = min(stop - pass_number * self.pass_size, self.pass_size) - 1
            low, high = ends_R.searchsorted([first, last], side="right")  # a row ends after its own positions
            pieces.append(rows_R[low : high + 1])
            if len(pieces) == 1:
                skipped = first - int(ends_R[low] - self.sizes_R[rows_R[low]])
        row_numbers = np.concatenate(pieces)
        kept_N = np.flatnonzero(~np.isin(self.rows.tokens[row_numbers][:, 1:], self.exclude))[skipped : skipped + size]
        return row_numbers, torch.from_numpy(kept_N)[permutation(size, self.seed, "round", number)]

    def harvest(self, row_numbers: np.ndarray) -> Batch:
        """Activations at the rows' positions 1, 2, ..., in the order of the text."""
        size, per_row = len(row_numbers), self.context - 1
        buffers = {site.key: torch.empty(size * per_row, site.width) for site in self.sites}
        tokens_RC = torch.from_numpy(self.rows.tokens[row_numbers].astype(np.int64))
        for start in range(0, size, self.harvest_rows):
            part = tokens_RC[start : start + self.harvest_rows].to(self.model.device)
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                found = self.model.activations(part, self.sites)
            for site in self.sites:
                x_ND = buffers[site.key][start * per_row : (start + len(part)) * per_row]
                x_ND.view(len(part), per_row, -1).copy_(found[site.key][:, 1:])  # leaves position 0 out, in one copy
                check_finite(x_ND, site, self.model.name)
        return Batch(*self.read(row_numbers).labels, activations=buffers)

    def read(self, row_numbers: np.ndarray) -> Batch:
        """What is known of the rows' positions 1, 2, ... without the model."""
        tokens_RC = torch.from_numpy(self.rows.tokens[row_numbers].astype(np.int64))
        documents_RC = torch.from_numpy(self.rows.documents[row_numbers].astype(np.int64))
        positions_N = torch.arange(1, self.context).repeat(len(row_numbers))
        return Batch(
            tokens_RC[:, 1:].flatten(), tokens_RC[:, :-1].flatten(), documents_RC[:, 1:].flatten(), positions_N, {}
        )


def stream_positions(rows: Rows, exclude: Sequence[int], chunk: int = 2**24) -> np.ndarray:
    """sizes_R: how many positions of each row are in a stream: all but position 0 and those whose token is in `exclude`."""
    step = max(1, chunk // rows.tokens.shape[1])
    parts = [rows.tokens[start : start + step, 1:] for start in range(0, len(rows), step)]  # mapped, not yet read
    return np.concatenate([(~np.isin(part, exclude)).sum(1) for part in parts])


def check_finite(x_ND: Tensor, site: Site, model: str) -> None:
    if not x_ND.sum().isfinite():  # one pass, no mask; a sum that overflows alone is no fault
        count = int((~torch.isfinite(x_ND)).any(-1).sum())
        if count:
            raise ValueError(
                f"activations at {site.hook} of {model}: {count} of {len(x_ND)} vectors hold NaN or infinity"
            )


STREAMS = {"pass": 0, "round": 1, "evaluation": 2}


def permutation(size: int, seed: int, stream: str, number: int) -> Tensor:
    """A permutation drawn from (seed, stream, number); the seed is any whole number."""
    key = (seed * 1_000_003 + int(number)) * len(STREAMS) + STREAMS[stream]
    if not -(2**63) <= key < 2**64:  # all that torch takes
        key %= 2**64
    return torch.randperm(size, generator=torch.Generator().manual_seed(key))


def generator_of(*key: str | int) -> torch.Generator:
    """A generator for the key: another key, unrelated numbers."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
