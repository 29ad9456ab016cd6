"""Arms: the dictionaries that a study trains, on any stream, each resumed where it was stopped."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rayscope.dictionaries import Dictionary, Learned, load
from rayscope.model.sites import Site
from rayscope.pipeline import DICTIONARIES, is_trained, train_on
from rayscope.streams.stream import Batch, Stream

LIMIT = 32 * 2**30  # bytes on a device at a time, which leave room for the model and a step where there are 48 GB


def train_arms(
    folder: Path,
    stream: Stream,
    calibration: Iterable[Batch],
    arms: dict[str, Callable[..., Learned]],
    *,
    vocabulary: int = 1,
    about: dict[Site, dict[str, Any]] | None = None,
) -> dict[Site, dict[str, Dictionary]]:
    """{site: {name: dictionary}}, trained in `folder` on the whole stream; what is finished there is read again.

    calibration: held-out batches on which thresholds are set. All arms see the same batches in the same order.
    """
    if not is_trained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        train_on(stream, calibration, arms, folder, about=about or {}, vocabulary=vocabulary)
    return {
        site: {name: load(folder / DICTIONARIES / site.key / name).to(stream.device) for name in arms}
        for site in stream.sites
    }


def groups(sites: Sequence[Site], names: Iterable[str], latents: int) -> list[tuple[tuple[Site, ...], tuple[str, ...]]]:
    """[(sites, names)] whose training holds at most LIMIT bytes (or is one dictionary): everything together, where it fits.

    Each group harvests the stream once more, so there are no more than that takes: a site alone, as many names as fit.
    """
    names = tuple(names)
    cost = {site: 4 * 4 * 2 * latents * site.width for site in sites}  # weight, gradient, Adam's two; encoder, decoder
    if len(names) * sum(cost.values()) <= LIMIT:
        return [(tuple(sites), names)]
    size = {site: max(1, LIMIT // cost[site]) for site in sites}
    return [((site,), names[i : i + size[site]]) for site in sites for i in range(0, len(names), size[site])]


def parts(dictionaries: dict[Site, dict[str, Dictionary]]) -> list[dict[Site, dict[str, Dictionary]]]:
    """The same in order, cut where the weights pass LIMIT bytes."""
    found: list[dict[Site, dict[str, Dictionary]]] = []
    room = -1
    for site, named in dictionaries.items():
        for name, dictionary in named.items():
            size = sum(tensor.nbytes for tensor in dictionary.state_dict().values())
            if size > room:
                found.append({})
                room = LIMIT
            found[-1].setdefault(site, {})[name] = dictionary
            room -= size
    return found


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
