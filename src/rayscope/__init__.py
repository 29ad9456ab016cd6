"""Sparse dictionaries of language-model activations: rays, directions, and what SVD and PCA miss."""

__version__ = "0.1.0"
