"""The baselines by name, each a function of what is known of a site; `conf/baselines` lists those of a run.

A new one is a function `(fit: SiteFit) -> Dictionary | None` here or anywhere, named in a YAML of conf/baselines. It is
given back at k = 1 and measured at whatever k costs the bits that it is compared at; None: it does not fit the site.
One whose directions know nothing of the data says so in its provenance, {"role": "control"}.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor

from rayscope.baselines import factors, independent, kmeans, ksvd
from rayscope.baselines.pca import pca, transform
from rayscope.baselines.simple import neuron_basis, random_rows
from rayscope.baselines.split import split
from rayscope.baselines.token_means import token_means
from rayscope.baselines.weights import svd
from rayscope.dictionaries import Dictionary, Linear, Transform
from rayscope.model import LanguageModel
from rayscope.model.sites import Site
from rayscope.streams.statistics import Moments, Sample, TokenSums
from rayscope.streams.stream import Batch


@dataclass(frozen=True)
class SiteFit:
    """What a baseline may be fitted from: moments of training activations, their sums by token, the model's weights.

    matrices: W_E (vocabulary, d_model), and the site's layer's W_in (d_model, d_mlp) and W_out (d_mlp, d_model), as in
    y = x @ W. sample: some of the activations themselves, where baselines.sample asks for any. Position 0 is in none.
    """

    site: Site
    moments: Moments
    token_sums: TokenSums
    matrices: dict[str, Tensor]
    sample: Sample | None = None

    @property
    def vectors_SD(self) -> Tensor:
        """The sample; ValueError where the run keeps none."""
        if self.sample is None:
            raise ValueError(
                "baselines.sample=0: a baseline listed is fitted on vectors kept in memory; try sample=20_000"
            )
        return self.sample.vectors_SD

    @property
    def mean_D(self) -> Tensor:
        return self.moments.mean_D.float()


def fit_sites(
    model: LanguageModel, sites: Iterable[Site], batches: Iterable[Batch], sample: int = 0, seed: int = 0
) -> dict[str, SiteFit]:
    """{site.key: fit}, in one pass over the batches;
    `sample` vectors of each site, at the same positions, stay in memory.
    """
    fits = {
        site.key: SiteFit(
            site,
            Moments(),
            TokenSums(model.vocabulary, site.width),
            matrices(model, site),
            Sample(sample, seed) if sample else None,
        )
        for site in sites
    }
    for batch in batches:
        for key, fit in fits.items():
            fit.moments.update(batch.activations[key])
            fit.token_sums.update(batch.tokens_N, batch.activations[key])
            if fit.sample:
                fit.sample.update(batch.activations[key])
    return fits


def matrices(model: LanguageModel, site: Site) -> dict[str, Tensor]:
    transformer = model.network.transformer
    mlp = transformer.h[site.layer].mlp
    return {"W_E": transformer.wte.weight, "W_in": mlp.c_fc.weight, "W_out": mlp.c_proj.weight}


def pca_prefix(fit: SiteFit) -> Linear:
    """The first k principal components, as PCA is usually truncated."""
    return pca(fit.moments, 1, "prefix")


def pca_topk(fit: SiteFit) -> Linear:
    """The k principal components with the largest |coefficients| of each vector: PCA used as a sparse code."""
    return pca(fit.moments, 1, "topk")


def pca_transform(fit: SiteFit) -> Transform:
    """The principal components as a transform code, bits by reverse water-filling: PCA as it is coded best."""
    return transform(fit.moments)


def ica(fit: SiteFit, components: int, seed: int = 0, iterations: int = 100, tolerance: float = 1e-3) -> Linear:
    """Independent components, k of them by OMP."""
    return independent.ica(fit.vectors_SD, components, 1, seed=seed, iterations=iterations, tolerance=tolerance)


def both_ends(baseline: Callable[..., Linear]) -> Callable[..., Linear]:
    """The baseline with the same arguments, and both ends of each of its directions as rays."""

    @wraps(baseline)
    def fitted(fit: SiteFit, *args: Any, **options: Any) -> Linear:
        return split(baseline(fit, *args, **options))

    return fitted


pca_split = both_ends(pca_topk)
ica_split = both_ends(ica)


def semi_nmf(fit: SiteFit, latents: int, seed: int = 0, iterations: int = 50) -> Dictionary:
    """As many rays as asked, and as semi-NMF has: the width at most."""
    return factors.semi_nmf(fit.vectors_SD, _limited(fit, latents), 1, seed=seed, iterations=iterations)


def nmf(
    fit: SiteFit, latents: int, seed: int = 0, iterations: int = 50, most_negative: float = 0.1
) -> Dictionary | None:
    """As many rays as asked, the width at most; None at sites with more than a little that is negative."""
    limited = _limited(fit, latents)
    return factors.nmf(fit.vectors_SD, limited, 1, seed=seed, iterations=iterations, most_negative=most_negative)


def _limited(fit: SiteFit, latents: int) -> int:
    return min(latents, fit.site.width, len(fit.vectors_SD))


def k_means(fit: SiteFit, latents: int, seed: int = 0, iterations: int = 20) -> Dictionary:
    """List it with max_k: 1."""
    return kmeans.kmeans(fit.vectors_SD, latents, seed=seed, iterations=iterations)


def k_svd(fit: SiteFit, latents: int, k: int, seed: int = 0, sweeps: int = 10) -> Dictionary:
    """Fitted for k codes, and measured at whatever number of them."""
    latents = min(latents, len(fit.vectors_SD))
    return ksvd.ksvd(fit.vectors_SD, latents, min(k, latents), seed=seed, sweeps=sweeps)


def weight_svd(fit: SiteFit, matrix: str) -> Dictionary | None:
    """Singular vectors of W_E, W_in or W_out on the side of the site's width."""
    if matrix not in fit.matrices:
        raise ValueError(f"baselines: no matrix {matrix!r}; there are {', '.join(fit.matrices)}")
    return svd(fit.matrices[matrix], fit.site.width, 1, fit.mean_D)


def neurons(fit: SiteFit) -> Dictionary:
    return neuron_basis(fit.site.width, 1, fit.mean_D)


def random(fit: SiteFit, latents: int, seed: int = 0) -> Dictionary:
    dictionary = random_rows(fit.site.width, latents, 1, seed, fit.mean_D)
    dictionary.provenance |= {"seed": seed, "role": "control"}
    return dictionary


def tokens(fit: SiteFit, latents: int, min_count: int = 8) -> Dictionary:
    """The mean activation of each frequent token as a direction, k of them by OMP; it is not told the token."""
    return token_means(fit.token_sums, latents, 1, min_count)
