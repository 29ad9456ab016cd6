"""How much of the gain of rays over PCA is structure? The same on nulls that keep more and more of the activations."""

from rayscope.studies.surrogate.study import surrogate

__all__ = ["surrogate"]
