"""The baselines by name, each a function of what is known of a site; `conf/baselines` lists those of a run.

A new one is a function `(fit: SiteFit) -> Dictionary | None` here or anywhere, named in a YAML of conf/baselines. It is
given back at k = 1 and measured at whatever k costs the bits that it is compared at; None means: does not fit this site.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from rayscope.activations import Batch
from rayscope.baselines.pca import Moments, pca
from rayscope.baselines.simple import neuron_basis, random_rows
from rayscope.baselines.token_means import TokenSums, token_means
from rayscope.baselines.weights import svd
from rayscope.dictionaries import Dictionary
from rayscope.model import LanguageModel
from rayscope.sites import Site


@dataclass(frozen=True)
class SiteFit:
    """What a baseline may be fitted from: the moments of training activations, their sums by token, the model's weights.

    matrices: W_E (vocabulary, d_model), and the site's layer's W_in (d_model, d_mlp) and W_out (d_mlp, d_model), as in
    y = x @ W. Position 0 is in none of the sums.
    """

    site: Site
    moments: Moments
    token_sums: TokenSums
    matrices: dict[str, Tensor]

    @property
    def mean_D(self) -> Tensor:
        return self.moments.mean_D.float()


def fit_sites(model: LanguageModel | None, sites: Iterable[Site], batches: Iterable[Batch]) -> dict[str, SiteFit]:
    """{site.key: fit}, in one pass over the batches. Without a model (a planted world): no matrices, one token, 0."""
    fits = {
        site.key: SiteFit(
            site,
            Moments(),
            TokenSums(model.network.config.vocab_size if model else 1, site.width),
            matrices(model, site) if model else {},
        )
        for site in sites
    }
    for batch in batches:
        for key, fit in fits.items():
            fit.moments.update(batch.activations[key])
            fit.token_sums.update(batch.tokens_N, batch.activations[key])
    return fits


def matrices(model: LanguageModel, site: Site) -> dict[str, Tensor]:
    transformer = model.network.transformer
    mlp = transformer.h[site.layer].mlp
    return {"W_E": transformer.wte.weight, "W_in": mlp.c_fc.weight, "W_out": mlp.c_proj.weight}


def pca_prefix(fit: SiteFit) -> Dictionary:
    """The first k principal components, as PCA is usually truncated."""
    return pca(fit.moments, 1, "prefix")


def pca_topk(fit: SiteFit) -> Dictionary:
    """The k principal components with the largest |coefficients| of each vector: PCA used as a sparse code."""
    return pca(fit.moments, 1, "topk")


def weight_svd(fit: SiteFit, matrix: str) -> Dictionary | None:
    """Singular vectors of W_E, W_in or W_out on the side of the site's width."""
    if matrix not in fit.matrices:
        raise ValueError(f"baselines: no matrix {matrix!r}; there are {', '.join(fit.matrices)}")
    return svd(fit.matrices[matrix], fit.site.width, 1, fit.mean_D)


def neurons(fit: SiteFit) -> Dictionary:
    return neuron_basis(fit.site.width, 1, fit.mean_D)


def random(fit: SiteFit, latents: int, seed: int = 0) -> Dictionary:
    dictionary = random_rows(fit.site.width, latents, 1, seed, fit.mean_D)
    dictionary.provenance["seed"] = seed
    return dictionary


def tokens(fit: SiteFit, latents: int, min_count: int = 8) -> Dictionary:
    """The mean activation of each frequent token: what a lookup of tokens explains."""
    return token_means(fit.token_sums, latents, 1, min_count)
