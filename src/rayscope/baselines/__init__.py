"""Fits from data or weights to a Dictionary: what learned dictionaries are compared with."""

from rayscope.baselines.catalogue import (
    SiteFit,
    fit_sites,
    ica,
    ica_split,
    k_means,
    k_svd,
    neurons,
    nmf,
    pca_prefix,
    pca_split,
    pca_topk,
    pca_transform,
    random,
    semi_nmf,
    tokens,
    weight_svd,
)
from rayscope.baselines.pca import pca
from rayscope.baselines.simple import neuron_basis, random_rows
from rayscope.baselines.split import split
from rayscope.baselines.token_means import token_means
from rayscope.baselines.weights import svd

__all__ = [
    "SiteFit", "fit_sites", "ica", "ica_split", "k_means", "k_svd", "neuron_basis",
    "neurons", "nmf", "pca", "pca_prefix", "pca_split", "pca_topk", "pca_transform", "random",
    "random_rows", "semi_nmf", "split", "svd",
    "token_means", "tokens", "weight_svd",
]  # fmt: skip
