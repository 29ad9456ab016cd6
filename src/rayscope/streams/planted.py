"""Planted worlds: vectors whose rays, rates and codes are known, as streams.

N vectors, D width, F features (rays), C children, P pairs, M active (vector, feature) pairs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries import Codes
from rayscope.model.sites import Site
from rayscope.seeding import generator_of
from rayscope.streams.stream import Batch, Stream

FIRING = ("zipf", "uniform")
DOCUMENT = 64  # vectors of a made-up document
CHUNK = 1024  # vectors whose uniform numbers lie in memory at once


class World:
    """x = mean + sum over active features of value * ray + noise.
    What is planted follows from the arguments and the seed.

    Features are in falling order of `rate_F`, the probability that each is active; the rates sum to `l0`.
    firing, exponent: root features fire at rates ~ 1 / rank^exponent (zipf) or alike (uniform), at most `cap`.
    hierarchy: the share of features that are children: one fires only if its parent, a root, does, then with
    probability child_given_parent (`parents_F`, -1 for a root).
    cofiring: the share of roots in pairs of neighbours in rate (`partners_F`, -1 for none); with probability `together`
    one draw decides for both, so that P(both) = together min(p, q) + (1 - together) p q and each keeps its rate.
    strength, spread: |value| = strength + spread |normal|. bipolar: the share of features whose value is negative half
    of the time (`bipolar_F`); all others are rays. mean, noise: standard deviations a dimension. Raises ValueError for
    an unknown firing, shares outside [0, 1], and an l0 that the rates cannot reach.
    """

    def __init__(
        self,
        features: int,
        width: int,
        l0: float,
        *,
        firing: str = "zipf",
        exponent: float = 1.0,
        cap: float = 0.5,
        strength: float = 1.0,
        spread: float = 1.0,
        bipolar: float = 0.0,
        cofiring: float = 0.0,
        together: float = 0.8,
        hierarchy: float = 0.0,
        child_given_parent: float = 0.3,
        mean: float = 0.3,
        noise: float = 0.02,
        seed: int = 0,
    ):
        if firing not in FIRING:
            raise ValueError(f"firing={firing!r}; it is one of {', '.join(FIRING)}")
        shares = {"cap": cap, "bipolar": bipolar, "cofiring": cofiring, "together": together, "hierarchy": hierarchy}
        for name, share in (shares | {"child_given_parent": child_given_parent}).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} is a share; give one from 0 to 1")
        children = round(hierarchy * features)
        roots = features - children
        if roots < 1 or width < 1:
            raise ValueError(
                f"features={features}, hierarchy={hierarchy}, width={width}: no root or no dimension is left"
            )
        self.features, self.width, self.l0, self.seed = features, width, l0, seed
        self.strength, self.spread, self.noise = strength, spread, noise
        self.together, self.child_given_parent = together, child_given_parent
        chance = generator_of("planted world", seed)
        self.rays_FD = F.normalize(torch.randn(features, width, generator=chance))
        self.mean_D = mean * torch.randn(width, generator=chance)
        self.bipolar_F = torch.zeros(features, dtype=torch.bool)
        self.bipolar_F[torch.randperm(features, generator=chance)[: round(bipolar * features)]] = True

        parents_F = torch.cat([torch.full((roots,), -1), torch.randint(roots, (children,), generator=chance)])
        weights = torch.arange(1, roots + 1, dtype=torch.float64) ** -(exponent if firing == "zipf" else 0.0)
        a_root = 1 + child_given_parent * parents_F[roots:].bincount(minlength=roots)  # it and its children
        rate_F = reaching(weights, a_root, cap, l0)
        rate_F = torch.cat([rate_F, child_given_parent * rate_F[parents_F[roots:]]])
        partners_F = torch.full((features,), -1)
        first_P = 2 * torch.randperm(roots // 2, generator=chance)[: round(cofiring * roots / 2)]
        partners_F[first_P], partners_F[first_P + 1] = first_P + 1, first_P

        order = rate_F.argsort(descending=True, stable=True)
        place = torch.cat([order.argsort(), torch.tensor([-1])])  # place[-1] is -1
        self.rate_F = rate_F[order].float()
        self.parents_F, self.partners_F = place[parents_F[order]], place[partners_F[order]]
        self._children_C = (self.parents_F >= 0).nonzero()[:, 0]
        self._first_P = (self.partners_F > torch.arange(features)).nonzero()[:, 0]

    @property
    def site(self) -> Site:
        return Site("planted", self.width, 0)

    def stream(self, split: str, tokens: int, batch_size: int = 1024, option: str = "tokens") -> "PlantedStream":
        """Vectors of this world; another split (any name) has others. option: what the user calls `tokens`."""
        return PlantedStream(self, split, tokens=tokens, batch_size=batch_size, option=option)

    def codes(self, vectors: int, generator: torch.Generator) -> Codes:
        """Which features are active on each vector, and their values."""
        rows, active = [], []
        for start in range(0, vectors, CHUNK):
            fires_NF = self._fires(min(CHUNK, vectors - start), generator)
            row_M, feature_M = fires_NF.nonzero(as_tuple=True)
            rows.append(row_M + start)
            active.append(feature_M)
        row_M, feature_M = torch.cat(rows), torch.cat(active)
        values_M = self.strength + self.spread * torch.randn(len(row_M), generator=generator).abs()
        negative_M = (torch.rand(len(row_M), generator=generator) < 0.5) & self.bipolar_F[feature_M]
        offsets = F.pad(row_M.bincount(minlength=vectors).cumsum(0), (1, 0))
        return Codes(feature_M, torch.where(negative_M, -values_M, values_M), offsets, self.features)

    def _fires(self, vectors: int, generator: torch.Generator) -> Tensor:
        u_NF = torch.rand(vectors, self.features, generator=generator)
        if len(self._first_P):
            one_draw_NP = torch.rand(vectors, len(self._first_P), generator=generator) < self.together
            second_P = self.partners_F[self._first_P]
            u_NF[:, second_P] = torch.where(one_draw_NP, u_NF[:, self._first_P], u_NF[:, second_P])
        fires_NF = u_NF < self.rate_F
        if len(self._children_C):
            asked_NC = u_NF[:, self._children_C] < self.child_given_parent
            fires_NF[:, self._children_C] = asked_NC & fires_NF[:, self.parents_F[self._children_C]]
        return fires_NF

    def vectors(self, codes: Codes, generator: torch.Generator) -> Tensor:
        """x_ND of the codes, with noise of its own."""
        x_ND = self.mean_D + self.noise * torch.randn(len(codes), self.width, generator=generator)
        if len(codes.values_M):
            x_ND += F.embedding_bag(
                codes.indices_M, self.rays_FD, codes.offsets, mode="sum",
                per_sample_weights=codes.values_M, include_last_offset=True,
            )  # fmt: skip
        return x_ND


class PlantedStream(Stream):
    """Batches of a world, a function of (world, split, batch number), with their true codes.

    There is no text: every token is 0, and a document is 64 consecutive vectors of a batch, for intervals.
    """

    def __init__(self, world: World, split: str, *, tokens: int, batch_size: int = 1024, option: str = "tokens"):
        super().__init__([world.site], tokens=tokens, batch_size=batch_size, option=option)
        self.world, self.split = world, split

    def _made(self, number: int) -> tuple[Codes, torch.Generator]:
        generator = generator_of("planted", self.world.seed, self.split, number)
        return self.world.codes(self.batch_size, generator), generator

    def codes(self, number: int) -> Codes:
        """The true codes of batch `number`."""
        return self._made(number)[0]

    def labels(self, number: int) -> Batch:
        none_N, within_N = torch.zeros(self.batch_size, dtype=torch.int64), torch.arange(self.batch_size)
        documents_N = number * -(-self.batch_size // DOCUMENT) + within_N // DOCUMENT
        return Batch(none_N, none_N, documents_N, within_N % DOCUMENT + 1, activations={})

    def __getitem__(self, number: int) -> Batch:
        x_ND = self.world.vectors(*self._made(number))
        return Batch(*self.labels(number).labels, activations={self.sites[0].key: x_ND})


def reaching(weights: Tensor, counted: Tensor, cap: float, l0: float) -> Tensor:
    """rates = min(c weights, cap) with c such that sum(counted * rates) = l0."""
    if not 0 < l0 <= (cap * counted.sum()).item():
        raise ValueError(f"l0={l0} must be above 0 and at most {cap * counted.sum():.4g}, all features at cap={cap}")
    low, high = 0.0, (cap / weights.min()).item()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (counted * (middle * weights).clamp(max=cap)).sum() < l0 else (low, middle)
    return (high * weights).clamp(max=cap)
