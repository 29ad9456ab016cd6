"""What a study is given, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rayscope.evaluation.measure import documents_predicted
from rayscope.model.sites import Site
from rayscope.streams.source import Source
from rayscope.streams.stream import Stream
from rayscope.studies.intervals import Observed, enough_documents


@dataclass(frozen=True)
class Setting:
    """What a study works with.

    folder: in which its arms are trained, each resumed from its checkpoint. size: whose options it was given.
    divided: those of them of which it was given a third. part: (i, n), to train each nth of the arms from the ith on,
    and measure nothing.
    Raises ValueError without a site or a seed.
    """

    source: Source
    sites: tuple[Site, ...]
    seeds: tuple[int, ...]
    folder: Path
    size: str | None = None
    divided: tuple[str, ...] = ()
    part: tuple[int, int] | None = None

    def __post_init__(self):
        if not self.sites:
            raise ValueError(
                "sites.patterns: no site given; a study needs at least one, such as blocks.3.hook_resid_post"
            )
        self.check_list("seeds", self.seeds, [0, 1, 2])

    @property
    def residual(self) -> Site:
        """The first residual site, or the first site if there is none."""
        return next((site for site in self.sites if site.part == "residual"), self.sites[0])

    def option(self, name: str) -> str:
        """What the user calls an argument of the study."""
        whole = f"study.sizes.{self.size}.{name}" if self.size else name
        return f"{whole} / 3" if name in self.divided else whole

    def check_list(self, name: str, values: Sequence[int], such: list[int]) -> None:
        """Raises ValueError for none, and for a value given twice, which would count twice."""
        values = list(values)
        if not values:
            raise ValueError(f"{self.option(name)}=[]: give at least one, such as {such}")
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{self.option(name)}={values}: {value} is given more than once")

    def check_rows(self, **sizes: int) -> None:
        """Raises ValueError for a size, by its name, whose whole rows of the test split are none, or of too few
        documents for an interval: called before anything is trained."""
        text = self.source.text
        for name, tokens in sizes.items():
            said = f"{self.option(name)}={tokens}"
            if tokens < text.context:
                raise ValueError(f"{said} is less than one row of {text.context} tokens; raise it")
            enough_documents(documents_predicted(text.test, tokens, self.source.seed), said)

    def check_stream(self, stream: Stream, **size: int) -> Stream:
        """The same of a stream and the size, by its name, that it was asked for; returns the stream."""
        ((name, tokens),) = size.items()
        documents = {d for number in range(len(stream)) for d in stream.labels(number).documents_N.unique().tolist()}
        enough_documents(len(documents), f"{self.option(name)}={tokens}")
        return stream


@dataclass(frozen=True)
class Findings:
    """table: tidy, sizes stated in it; observed: by the name of the prediction that it answers; figure: SVG."""

    table: pd.DataFrame
    observed: dict[str, Observed]
    figure: str
