"""The real activations and their nulls: where rays are trained, and the vectors on which they meet PCA."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from rayscope.model.nulls import NULL_MODELS
from rayscope.streams.source import Source
from rayscope.streams.statistics import Moments
from rayscope.streams.stream import Batch, Stream
from rayscope.streams.surrogates import KINDS, SiteSample, Surrogate, sample_sites
from rayscope.studies.setting import Setting

REAL = "real"
NULLS = (*KINDS, *NULL_MODELS)


@dataclass(frozen=True)
class Arena:
    """A stream to train on, validation and test vectors like its own, and the moments that its PCA is made from."""

    stream: Stream
    validation: Batch
    test: Batch
    moments: dict[str, Moments]


@dataclass(frozen=True, eq=False)
class Arenas:
    """Each null is drawn once for each seed, and the rays of a seed are trained and measured on the draw of that seed.

    sample: see `sample_sites`. fit_tokens: of training text, that moments and means by token are taken from; a null
    model's moments from no more than it trains on.
    """

    setting: Setting
    tokens: int
    fit_tokens: int
    sample: int
    held_out: int

    def check(self) -> None:
        """Raises ValueError, before anything is trained, for text too small."""
        source = self.setting.source
        self.training(source)
        self.fitted_on(source, self.fit_tokens)
        self.setting.check_stream(self.held(source, "test"), held_out=self.held_out)
        self.held(source, "validation")

    def stream(self, name: str, seed: int) -> Stream:
        real = self.training(self.source(name, seed))
        return Surrogate(name, self.known, real, seed=seed) if name in KINDS else real

    def validation(self, name: str, seed: int) -> Batch:
        return self.like(name, seed, "validation")

    def arena(self, name: str, seed: int) -> Arena:
        return Arena(
            self.stream(name, seed),
            self.validation(name, seed),
            self.like(name, seed, "test"),
            self.moments(name, seed),
        )

    def like(self, name: str, seed: int, split: str) -> Batch:
        """Held-out vectors: of a surrogate, a sample with the mean and covariance of the real ones."""
        if name in KINDS:
            return Surrogate(name, self.known, self.training(self.setting.source), seed=seed).match(self.real(split))
        return self.real(split) if name == REAL else Batch.join(self.held(self.source(name, seed), split))

    def moments(self, name: str, seed: int) -> dict[str, Moments]:
        if name not in NULL_MODELS:
            return {key: one.moments for key, one in self.known.items()}
        source = self.source(name, seed)
        found = sample_sites(self.fitted_on(source, min(self.tokens, self.fit_tokens)), source.model.vocabulary, 1)
        return {key: one.moments for key, one in found.items()}

    def source(self, name: str, seed: int) -> Source:
        source = self.setting.source
        return replace(source, model=NULL_MODELS[name](source.model, seed)) if name in NULL_MODELS else source

    @cached_property
    def known(self) -> dict[str, SiteSample]:
        source = self.setting.source
        return sample_sites(self.fitted_on(source, self.fit_tokens), source.model.vocabulary, self.sample)

    @cache  # noqa: B019 (two batches, for as long as the study runs)
    def real(self, split: str) -> Batch:
        return Batch.join(self.held(self.setting.source, split))

    def training(self, source: Source) -> Stream:
        return source.stream("train", self.setting.sites, self.tokens, option=self.setting.option("tokens"))

    def fitted_on(self, source: Source, tokens: int) -> Stream:
        return source.stream("train", self.setting.sites, tokens, "fp32", self.setting.option("fit_tokens"))

    def held(self, source: Source, split: str) -> Stream:
        return source.stream(split, self.setting.sites, self.held_out, "fp32", self.setting.option("held_out"))


def check_nulls(nulls: Sequence[str]) -> None:
    """Raises ValueError for none, and for one that is not among NULLS."""
    if not nulls or not set(nulls) <= set(NULLS):
        raise ValueError(f"study.run.nulls={', '.join(nulls) or 'none'}; some of {', '.join(NULLS)} must be given")
