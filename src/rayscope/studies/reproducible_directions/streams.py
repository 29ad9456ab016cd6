"""Where dictionaries that are compared with each other come from: the real activations, and draws of their nulls."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rayscope.model.nulls import NULL_MODELS
from rayscope.streams.halves import halves
from rayscope.streams.source import Source
from rayscope.streams.stream import Batch, Stream
from rayscope.streams.surrogates import KINDS, SiteSample, Surrogate, sample_sites
from rayscope.studies.setting import Setting

REAL = "real"
NULLS = (*KINDS, *NULL_MODELS)
HALVES = (0, 1)
WORDS = "AB"  # for the halves


@dataclass(frozen=True)
class Group:
    """The seeds whose dictionaries are compared with each other; counted: those whose directions are counted.

    draw: of a null model, whose directions no other draw has; None where all seeds meet.
    """

    name: str
    seeds: tuple[int, ...]
    counted: tuple[int, ...]
    draw: int | None = None

    def folder(self, half: int, seed: int) -> str:
        """Of a training: of a surrogate each seed has one of its own, else all share one pass over the half."""
        own = f"_seed{seed}" if self.name in KINDS else "" if self.draw is None else f"_draw{self.draw}"
        return f"{self.name}_{WORDS[half]}{own}"

    def seeds_in(self, folder: str, half: int) -> list[int]:
        return [seed for seed in self.seeds if self.folder(half, seed) == folder]


def groups(name: str, seeds: Sequence[int]) -> list[Group]:
    """All seeds together; of a null model one draw for each seed, which is met by the next seed on the same draw."""
    if name not in NULL_MODELS:
        return [Group(name, tuple(seeds), tuple(seeds))]
    return [Group(name, (seed, seeds[(i + 1) % len(seeds)]), (seed,), seed) for i, seed in enumerate(seeds)]


@dataclass(frozen=True, eq=False)
class Streams:
    """tokens: of each half; means_tokens: of training text, where a latent's mean by token is taken; test_tokens: of
    the vectors on which dictionaries are compared.

    A surrogate is one distribution: each half and seed trains on a draw of its own.
    """

    source: Source
    setting: Setting
    tokens: int
    means_tokens: int
    test_tokens: int

    def source_of(self, group: Group) -> Source:
        if group.draw is None:
            return self.source
        return replace(self.source, model=NULL_MODELS[group.name](self.source.model, group.draw))

    def half(self, group: Group, half: int, seed: int) -> Stream:
        stream = self.halved(self.source_of(group), half)
        number = 2 * self.setting.seeds.index(seed) + half
        return Surrogate(group.name, self.known, stream, seed=number) if group.name in KINDS else stream

    def seen(self, group: Group) -> Stream:
        stream = self.read(self.source_of(group))
        return Surrogate(group.name, self.known, stream, seed=self.draws) if group.name in KINDS else stream

    def test(self, group: Group) -> Batch:
        if group.name in KINDS:
            stream = self.halved(self.source, 0)
            return Surrogate(group.name, self.known, stream, seed=self.draws).match(self.real_test)
        return self.real_test if group.draw is None else Batch.join(self.held_out(self.source_of(group)))

    @property
    def draws(self) -> int:
        """Of each surrogate, to train on."""
        return 2 * len(self.setting.seeds)

    @cached_property
    def real_test(self) -> Batch:
        return Batch.join(self.held_out(self.source))

    @cached_property
    def known(self) -> dict[str, SiteSample]:
        stream = self.source.stream("train", self.sites, self.tokens, option=self.setting.option("tokens"))
        return sample_sites(stream, self.source.model.vocabulary)

    @property
    def sites(self) -> list:
        return [self.setting.residual]

    def halved(self, source: Source, half: int) -> Stream:
        of = replace(source, text=self.texts[half].text)
        return of.stream("train", self.sites, self.tokens, option=self.setting.option("tokens"))

    @cached_property
    def texts(self) -> tuple[Source, Source]:
        return halves(self.source, self.tokens)

    def read(self, source: Source) -> Stream:
        return source.stream("train", self.sites, self.means_tokens, "fp32", self.setting.option("means_tokens"))

    def held_out(self, source: Source) -> Stream:
        return source.stream("test", self.sites, self.test_tokens, "fp32", self.setting.option("test_tokens"))

    def check(self) -> None:
        """Raises ValueError, before anything is trained, for text too small."""
        for half in HALVES:
            self.halved(self.source, half)
        self.read(self.source)
        self.setting.check_stream(self.held_out(self.source), test_tokens=self.test_tokens)
