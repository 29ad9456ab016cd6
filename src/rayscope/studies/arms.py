"""Arms: the dictionaries that a study trains, on any stream, each resumed where it was stopped."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from rayscope.dictionaries import Dictionary, Learned, load
from rayscope.evaluation.entry import Entry, Role, label, role_of
from rayscope.model.sites import Site
from rayscope.pipeline import train_dictionaries
from rayscope.streams.stream import Batch, Stream
from rayscope.training.trained import DICTIONARIES, is_trained

LIMIT = 32 * 2**30  # bytes on a device at a time, which leave room for the model and a step where there are 48 GB


@dataclass(frozen=True)
class Arm:
    """A dictionary that a study trains at every site; its name is that of its folder."""

    method: str
    k: int
    seed: int

    @property
    def name(self) -> str:
        return label(self.method, self.k, self.seed)

    def entry(self, site: Site, dictionary: Dictionary, role: Role | None = None) -> Entry:
        return Entry(site, self.method, role or role_of(dictionary), self.k, self.seed, dictionary, self.name)


class Named(Hashable, Protocol):
    """An arm of any facts."""

    @property
    def name(self) -> str: ...


A = TypeVar("A", bound=Named)


def train_arms(
    folder: Path,
    stream: Stream,
    calibration: Iterable[Batch],
    arms: Mapping[A, Callable[..., Learned]],
    *,
    vocabulary: int = 1,
    about: dict[Site, dict[str, Any]] | None = None,
) -> dict[Site, dict[A, Dictionary]]:
    """{site: {arm: dictionary}}, trained in `folder` on the whole stream; what is finished there is read again.

    calibration: held-out batches on which thresholds are set. All arms see the same batches in the same order.
    """
    if not is_trained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        makers = {arm.name: make for arm, make in arms.items()}
        train_dictionaries(stream, calibration, makers, folder, about=about or {}, vocabulary=vocabulary)
    return {
        site: {arm: load(folder / DICTIONARIES / site.key / arm.name).to(stream.device) for arm in arms}
        for site in stream.sites
    }


def groups(sites: Sequence[Site], arms: Iterable[A], latents: int) -> list[tuple[tuple[Site, ...], tuple[A, ...]]]:
    """[(sites, arms)] whose training holds at most LIMIT bytes (or is one dictionary): all together, if they fit.

    Each group harvests the stream once more, so there are no more than that takes: one site, as many arms as fit.
    """
    arms = tuple(arms)
    cost = {site: 4 * 4 * 2 * latents * site.width for site in sites}  # weight, gradient, Adam's two; encoder, decoder
    if len(arms) * sum(cost.values()) <= LIMIT:
        return [(tuple(sites), arms)]
    size = {site: max(1, LIMIT // cost[site]) for site in sites}
    return [((site,), arms[i : i + size[site]]) for site in sites for i in range(0, len(arms), size[site])]


def parts(entries: Iterable[Entry]) -> list[list[Entry]]:
    """The same in order, cut where the weights pass LIMIT bytes."""
    cut: list[list[Entry]] = []
    room = -1
    for entry in entries:
        size = sum(tensor.nbytes for tensor in entry.dictionary.state_dict().values())
        if size > room:
            cut.append([])
            room = LIMIT
        cut[-1].append(entry)
        room -= size
    return cut


@contextmanager
def lent(dictionaries: Iterable[Dictionary], device: torch.device) -> Iterator[None]:
    """Dictionaries wait on the CPU, and are on the device for as long as they are used."""
    borrowed = list(dictionaries)
    for dictionary in borrowed:
        dictionary.to(device)
    try:
        yield
    finally:
        for dictionary in borrowed:
            dictionary.cpu()
