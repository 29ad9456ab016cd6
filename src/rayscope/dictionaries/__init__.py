"""Dictionaries of rays (non-negative codes) and directions (signed codes), learned or given, behind one interface.

Needs torch and safetensors alone.
"""

from rayscope.dictionaries.base import KINDS, Codes, Dictionary
from rayscope.dictionaries.learned import (
    L1,
    AbsTopK,
    BatchTopK,
    BottleneckTopK,
    Gated,
    JumpReLU,
    Learned,
    MatryoshkaAbsTopK,
    MatryoshkaBatchTopK,
    MatryoshkaTopK,
    TiedTopK,
    TokenBiasTopK,
    TopK,
)
from rayscope.dictionaries.linear import Linear, recoded
from rayscope.dictionaries.loading import find, fingerprint, load

__all__ = [
    "KINDS",
    "L1",
    "AbsTopK",
    "BatchTopK",
    "BottleneckTopK",
    "Codes",
    "Dictionary",
    "Gated",
    "JumpReLU",
    "Learned",
    "Linear",
    "MatryoshkaAbsTopK",
    "MatryoshkaBatchTopK",
    "MatryoshkaTopK",
    "TiedTopK",
    "TokenBiasTopK",
    "TopK",
    "find",
    "fingerprint",
    "load",
    "recoded",
]
