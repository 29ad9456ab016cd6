"""Arms: the dictionaries that a study trains, on any stream, each resumed where it was stopped."""

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from rayscope.dictionaries import Dictionary, Learned, load
from rayscope.evaluation.entry import Entry, Role, label, role_of
from rayscope.model.sites import Site
from rayscope.pipeline import train_dictionaries
from rayscope.runs.lock import locked
from rayscope.runs.run import Unfinished
from rayscope.streams.stream import Batch, Stream
from rayscope.studies.setting import Setting
from rayscope.training.trained import DICTIONARIES, is_trained

ARMS = "arms"  # in a study's folder: a folder for each training
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


@dataclass(frozen=True)
class Training(Generic[A]):
    """Arms that learn from the whole of one stream, all from the same batches in the same order.

    calibration: held-out batches on which thresholds are set.
    """

    stream: Stream
    arms: Mapping[A, Callable[..., Learned]]
    calibration: Iterable[Batch] = ()
    about: Mapping[Site, dict[str, Any]] = field(default_factory=dict)
    vocabulary: int = 1

    def train(self, folder: Path) -> None:
        """In the folder, unless it is done there. Raises InUse if another process is at it."""
        if is_trained(folder):
            return
        with locked(folder, sys.argv[1:]):
            makers = {arm.name: make for arm, make in self.arms.items()}
            train_dictionaries(
                self.stream, self.calibration, makers, folder, about=dict(self.about), vocabulary=self.vocabulary
            )


def train_all(setting: Setting, trainings: Mapping[str, Callable[[], Training]]) -> None:
    """Each training in the folder of its name, made when its turn comes; what is finished is left as it is.

    Raises Unfinished after those of the setting's part, if it has one.
    """
    number, of = setting.part or (1, 1)
    mine = list(trainings)[number - 1 :: of]
    for name in mine:
        trainings[name]().train(setting.folder / ARMS / name)
    if setting.part:
        raise Unfinished(
            f"part {number}/{of}: {len(mine)} of {len(trainings)} trainings are done in {setting.folder / ARMS}; "
            "without part= the study trains what is left, and measures"
        )


def trained(
    setting: Setting, name: str, arms: Iterable[A], sites: Sequence[Site] | None = None
) -> dict[Site, dict[A, Dictionary]]:
    """What `train_all` trained by this name. sites: the setting's, unless given."""
    folder = setting.folder / ARMS / name
    return read_arms(folder, setting.sites if sites is None else sites, arms, setting.source.model.device)


def read_arms(
    folder: Path, sites: Sequence[Site], arms: Iterable[A], device: torch.device | str = "cpu"
) -> dict[Site, dict[A, Dictionary]]:
    """{site: {arm: dictionary}} of a training in the folder."""
    arms = list(arms)
    return {site: {arm: load(folder / DICTIONARIES / site.key / arm.name).to(device) for arm in arms} for site in sites}


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
    """Cut where the weights pass LIMIT bytes, but never within a method under a coder at a site: which of its points
    are spliced depends on all of them.
    """
    alike: dict[tuple, list[Entry]] = {}
    for entry in entries:
        alike.setdefault((entry.site, entry.method, entry.coder), []).append(entry)
    cut: list[list[Entry]] = []
    room = -1
    for together in alike.values():
        size = sum(tensor.nbytes for entry in together for tensor in entry.dictionary.state_dict().values())
        if size > room:
            cut.append([])
            room = LIMIT
        cut[-1] += together
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
