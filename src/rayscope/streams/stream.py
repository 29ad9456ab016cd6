"""Stream: batches of activations by number. N vectors of a batch, D site width."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayscope.dictionaries import Codes, Dictionary
from rayscope.model.sites import Site


@dataclass(frozen=True)
class Vectors:
    """N vectors of one site, and those that a dictionary there reconstructs: the same tensor unless `Site.output` is
    another site. first_N: which are at position 0. Labels stay on the CPU."""

    x_ND: Tensor
    target_ND: Tensor
    tokens_N: Tensor
    documents_N: Tensor
    first_N: Tensor

    def to(self, device_or_dtype: torch.device | torch.dtype | str) -> "Vectors":
        return self._changed(lambda x_ND: x_ND.to(device_or_dtype))

    def take(self, chosen: Tensor) -> "Vectors":
        """chosen: a mask or places, on the CPU."""
        labels = {name: getattr(self, name)[chosen] for name in ("tokens_N", "documents_N", "first_N")}
        return self._changed(lambda x_ND: x_ND[chosen.to(x_ND.device)], **labels)

    def _changed(self, change: Callable[[Tensor], Tensor], **labels: Tensor) -> "Vectors":
        x_ND = change(self.x_ND)
        return replace(
            self, x_ND=x_ND, target_ND=x_ND if self.target_ND is self.x_ND else change(self.target_ND), **labels
        )

    def encode(self, dictionary: Dictionary) -> Codes:
        return dictionary.encode_sparse(self.x_ND, self.tokens_N)


@dataclass(frozen=True)
class Batch:
    """N positions of the text, the same at every site.
    `previous` is the token before, at a document's start the separator.
    """

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

    def at(self, site: Site) -> Vectors:
        x_ND, target_ND = self.activations[site.key], self.activations[site.output.key]
        return Vectors(x_ND, target_ND, self.tokens_N, self.documents_N, self.positions_N == 0)

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

    def token_ids(self) -> Tensor:
        """The tokens at all of the stream's positions, in its order."""
        return torch.cat([self.labels(number).tokens_N for number in range(self.length)])

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
    """The batches and labels of `real` with other activations, which a subclass makes;
    its length, unless `tokens` says.
    """

    def __init__(self, real: Stream, sites: Sequence[Site] | None = None, tokens: int | None = None):
        tokens = tokens if tokens is not None else len(real) * real.batch_size
        super().__init__(real.sites if sites is None else sites, tokens=tokens, batch_size=real.batch_size)
        self.real = real

    @property
    def device(self) -> torch.device:
        return self.real.device

    def labels(self, number: int) -> Batch:
        return self.real.labels(number)
