"""Surrogates: streams that keep what a null keeps of a real one (its mean and covariance, and more) and nothing else.

N vectors, D site width, K rank of the covariance, S vectors of a sample, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayscope.model.sites import Site
from rayscope.seeding import generator_of
from rayscope.streams.statistics import Moments, TokenSums
from rayscope.streams.stream import Batch, DerivedStream, Stream

KINDS = ("gaussian", "elliptical", "pc_shuffled", "token_mixture")
CHUNK = 8192  # vectors in float64 at once


@dataclass(frozen=True)
class SiteSample:
    """What surrogates are made from: moments and sums by token of all vectors of a pass, and some of the vectors."""

    moments: Moments
    token_sums: TokenSums
    sample_SD: Tensor


def sample_sites(stream: Stream, vocabulary: int, sample: int = 16_384) -> dict[str, SiteSample]:
    """{site.key: SiteSample} in one pass over the stream (training text);
    the sample is taken evenly from its batches.
    """
    each = -(-min(sample, len(stream) * stream.batch_size) // len(stream))
    moments = {site.key: Moments() for site in stream.sites}
    sums = {site.key: TokenSums(vocabulary, site.width) for site in stream.sites}
    kept: dict[str, list[Tensor]] = {site.key: [] for site in stream.sites}
    for batch in stream:
        for key, x_ND in batch.activations.items():
            moments[key].update(x_ND)
            sums[key].update(batch.tokens_N, x_ND)
            kept[key].append(x_ND[:each].clone())
    return {key: SiteSample(moments[key], sums[key], torch.cat(kept[key])) for key in moments}


class Whitening:
    """y = (x - mean) V / sqrt(lambda) over the K components of variance lambda > 0; x = mean + y (sqrt(lambda) V^T)."""

    def __init__(self, mean_D: Tensor, covariance_DD: Tensor):
        values_D, columns_DD = torch.linalg.eigh(covariance_DD.double())
        kept_D = values_D > values_D[-1] * len(values_D) * torch.finfo(torch.float64).eps
        if not kept_D.any():
            raise ValueError("all vectors are the same: a surrogate needs some that differ")
        root_K, basis_DK = values_D[kept_D].sqrt(), columns_DD[:, kept_D]
        self.mean_D, self.inverse_DK, self.basis_KD = mean_D.double(), basis_DK / root_K, (basis_DK * root_K).T
        self.rank = len(root_K)

    def whiten(self, x_ND: Tensor) -> Tensor:
        """float32, computed in float64."""
        return torch.cat([((x.double() - self.mean_D) @ self.inverse_DK).float() for x in x_ND.split(CHUNK)])

    def colour(self, y_NK: Tensor, mean_K: Tensor | float = 0.0, map_KK: Tensor | None = None) -> Tensor:
        """mean + (y - mean_K) map basis: float32, computed in float64."""
        basis_KD = self.basis_KD if map_KK is None else map_KK @ self.basis_KD
        return torch.cat([(self.mean_D + (y.double() - mean_K) @ basis_KD).float() for y in y_NK.split(CHUNK)])


class Law:
    """The distribution of a surrogate's whitened vectors y at one site, of mean 0 and covariance 1 for every kind.

    gaussian       y ~ N(0, 1).
    elliptical     y = r g / |g|, g ~ N(0, 1), r the whitened norm |y| of a vector of the sample, scaled so that
                   E[r^2] = K: directions know nothing, the norms (x^T S^-1 x)^.5 are the real ones.
    pc_shuffled    each component drawn by itself from the sample's values of it: every PC keeps its distribution.
    token_mixture  y = mean of the token + Gaussian of what is left, one covariance for all tokens. The mean of a token
                   seen n times is shrunk towards that of all by n / (n + within / between), the variances of vectors
                   within a token and of true token means as the analysis of variance gives them (a token never seen has
                   the mean of all); the Gaussian's covariance is the total less that of the shrunken means.
    """

    def __init__(self, kind: str, known: SiteSample, device: torch.device):
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}; a surrogate is one of {', '.join(KINDS)}")
        self.kind, self.device = kind, device
        self.whitening = Whitening(known.moments.mean_D, known.moments.covariance_DD)
        self.rank = self.whitening.rank
        self.mean_D = self.whitening.mean_D.float().to(device)
        self.basis_KD = self.whitening.basis_KD.float().to(device)
        if kind == "elliptical":
            self.radii_S = radii(self.whitening.whiten(known.sample_SD))
        if kind == "pc_shuffled":
            y_SK = self.whitening.whiten(known.sample_SD).double()
            y_SK = y_SK - y_SK.mean(0)
            self.scores_KS = (y_SK / y_SK.square().mean(0).sqrt().clamp_min(1e-12)).float().T.contiguous()
        if kind == "token_mixture":
            self.means_VK, self.within_KK = token_law(known.token_sums, known.moments, self.whitening)

    def draw(self, tokens_N: Tensor, generator: torch.Generator) -> Tensor:
        """y_NK, a vector for each token."""
        shape = (len(tokens_N), self.rank)
        if self.kind == "pc_shuffled":
            places_KN = torch.randint(self.scores_KS.shape[1], shape[::-1], generator=generator)
            return self.scores_KS.gather(1, places_KN).T
        y_NK = torch.randn(shape, generator=generator)
        if self.kind == "elliptical":
            chosen_N = torch.randint(len(self.radii_S), shape[:1], generator=generator)
            return on_spheres(y_NK, self.radii_S[chosen_N])
        if self.kind == "token_mixture":
            return self.means_VK[tokens_N] + y_NK @ self.within_KK
        return y_NK

    def vectors(self, y_NK: Tensor) -> Tensor:
        return (self.mean_D + y_NK.to(self.device) @ self.basis_KD).cpu()

    def like(self, x_ND: Tensor, tokens_N: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of this law for the real x, vector for vector, whose mean and covariance are those of x.

        elliptical: vector n has the norm of x_n, whitened by x's own moments; pc_shuffled: x's own scores, each
        component permuted. The draw's sample moments are then made exact by y -> (y - mean) C^-1/2, C its covariance:
        nearest to doing nothing of all such maps, so the law is changed by the sampling error of C alone. Exact up to
        the rounding of float32 vectors.
        """
        if len(x_ND) <= x_ND.shape[1]:
            raise ValueError(
                f"match: {len(x_ND)} vectors of width {x_ND.shape[1]}; "
                "a sample with the same covariance needs more than that"
            )
        moments = moments_of(x_ND)
        real = Whitening(moments.mean_D, moments.covariance_DD)
        if self.kind == "gaussian":
            y_NK = torch.randn(len(x_ND), real.rank, generator=generator)
        elif self.kind == "elliptical":
            g_NK = torch.randn(len(x_ND), real.rank, generator=generator)
            y_NK = on_spheres(g_NK, radii(real.whiten(x_ND)))
        elif self.kind == "pc_shuffled":
            y_KN = real.whiten(x_ND).T.contiguous()
            for y_N in y_KN:
                y_N.copy_(y_N[torch.randperm(len(y_N), generator=generator)])
            y_NK = y_KN.T
        else:
            y_NK = real.whiten(self.vectors(self.draw(tokens_N, generator)))
        drawn = moments_of(y_NK)
        values_K, columns_KK = torch.linalg.eigh(drawn.covariance_DD)
        if values_K[0] <= values_K[-1] * 1e-10:
            raise ValueError(
                f"match: {self.kind} varies in fewer dimensions than the {real.rank} of the vectors given; "
                "fit it on text like theirs"
            )
        return real.colour(y_NK, drawn.mean_D, columns_KK @ (columns_KK / values_K.sqrt()).T)


class Surrogate(DerivedStream):
    """A stream of the same sites, batches and labels (token, document, position) as `real`, with a null's activations.

    known: what `sample_sites` found on training text, from which the law (see `Law`) of each site is made: its mean and
    covariance are those of that pass. A batch depends on (kind, seed, batch number) and the site alone, so that a site
    with others is as alone; the model is never run. `match` makes held-out samples.

    Raises ValueError for an unknown kind and for a site of which nothing is known.
    """

    def __init__(
        self,
        kind: str,
        known: dict[str, SiteSample],
        real: Stream,
        *,
        tokens: int | None = None,
        sites: Sequence[Site] | None = None,
        seed: int = 0,
    ):
        super().__init__(real, sites, tokens)
        for site in self.sites:
            if site.key not in known:
                raise ValueError(f"known: nothing is known of {site.hook}; there are {', '.join(known)}")
        self.kind, self.seed = kind, seed
        self.laws = {site.key: Law(kind, known[site.key], real.device) for site in self.sites}

    def __getitem__(self, number: int) -> Batch:
        labels = self.labels(number)
        drawn = {}
        for key, law in self.laws.items():
            generator = generator_of("surrogate", self.kind, self.seed, key, number)
            drawn[key] = law.vectors(law.draw(labels.tokens_N, generator))
        return replace(labels, activations=drawn)

    def match(self, held_out: Batch | Iterable[Batch]) -> Batch:
        """The surrogate's sample for a real one, whose labels, mean and covariance at each site it has (`Law.like`).

        What reconstructs by a fixed affine map, as pca_prefix does, then has one FVU on both, up to float32.
        Raises ValueError where a site's vectors are not more than its width.
        """
        real = held_out if isinstance(held_out, Batch) else Batch.join(held_out)
        drawn = {}
        for key, law in self.laws.items():
            generator = generator_of("surrogate match", self.kind, self.seed, key)
            drawn[key] = law.like(real.activations[key], real.tokens_N, generator)
        return replace(real, activations=drawn)


def moments_of(x_ND: Tensor) -> Moments:
    moments = Moments()
    for x in x_ND.split(CHUNK):
        moments.update(x)
    return moments


def radii(y_NK: Tensor) -> Tensor:
    """|y|, scaled so that the mean square is K."""
    norm_N = y_NK.norm(dim=1).double()
    return (norm_N * (y_NK.shape[1] / norm_N.square().mean()).sqrt()).float()


def on_spheres(g_NK: Tensor, radii_N: Tensor) -> Tensor:
    return g_NK * (radii_N / g_NK.norm(dim=1).clamp_min(1e-12))[:, None]


def token_law(sums: TokenSums, moments: Moments, whitening: Whitening) -> tuple[Tensor, Tensor]:
    """(means_VK, within_KK): whitened shrunken token means, and the symmetric root of 1 less their covariance.

    d_v = n_v / (n_v + within / between) (mean_v - mean), less its mean over vectors. One factor a token, at most 1, so
    their covariance is below that of the plain means, and what is left is a covariance.
    """
    counts_V = sums.counts_V.double()
    total, seen = counts_V.sum(), int((counts_V > 0).sum())
    centred_VD = sums.sums_VD / counts_V.clamp_min(1)[:, None] - moments.mean_D
    centred_VD[counts_V == 0] = 0
    between = (counts_V @ centred_VD.square().sum(1)) / max(seen - 1, 1)  # mean squares of the analysis of variance
    all_squares = moments.covariance_DD.trace() * total
    within = (all_squares - between * max(seen - 1, 1)).clamp_min(0) / max(int(total) - seen, 1)
    a_token = (total - counts_V.square().sum() / total) / max(seen - 1, 1)
    true_between = ((between - within) / a_token.clamp_min(1e-12)).clamp_min(0)
    known = seen > 1 and total > seen and true_between > 0  # else nothing tells means from noise
    shrunk_V = counts_V / (counts_V + within / true_between).clamp_min(1e-12) if known else torch.zeros_like(counts_V)
    means_VK = (shrunk_V[:, None] * centred_VD) @ whitening.inverse_DK
    means_VK -= (counts_V / total) @ means_VK
    means_VK[counts_V == 0] = 0
    spread_KK = (means_VK * (counts_V / total)[:, None]).T @ means_VK
    values_K, columns_KK = torch.linalg.eigh(torch.eye(whitening.rank, dtype=torch.float64) - spread_KK)
    root_KK = (columns_KK * values_K.clamp_min(0).sqrt()) @ columns_KK.T
    return means_VK.float(), root_KK.float()
