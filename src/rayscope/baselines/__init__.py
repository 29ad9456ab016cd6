"""Fits from data or weights to a Dictionary: what learned dictionaries are compared with."""

from rayscope.baselines.catalogue import (
    SiteFit,
    fit_sites,
    neurons,
    pca_prefix,
    pca_topk,
    random,
    tokens,
    weight_svd,
)
from rayscope.baselines.pca import Moments, pca
from rayscope.baselines.simple import neuron_basis, random_rows
from rayscope.baselines.token_means import TokenSums, token_means
from rayscope.baselines.weights import svd

__all__ = [
    "Moments", "SiteFit", "TokenSums", "fit_sites", "neuron_basis", "neurons", "pca", "pca_prefix", "pca_topk", "random",
    "random_rows", "svd", "token_means", "tokens", "weight_svd",
]  # fmt: skip
