"""Arms: the dictionaries that a study trains, on any stream, each resumed where it was stopped."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rayscope.activations import Batch, Stream
from rayscope.dictionaries import Dictionary, Learned, load
from rayscope.pipeline import DICTIONARIES, TRAINED, train_on
from rayscope.sites import Site


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
    if not (folder / TRAINED).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        train_on(stream, calibration, arms, folder, about=about or {}, vocabulary=vocabulary)
    return {
        site: {name: load(folder / DICTIONARIES / site.key / name).to(stream.device) for name in arms}
        for site in stream.sites
    }
