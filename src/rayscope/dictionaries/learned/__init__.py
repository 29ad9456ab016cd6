"""Dictionaries that are trained: one file per kind."""

from rayscope.dictionaries.learned.autoencoders import AbsTopK, BatchTopK, TopK
from rayscope.dictionaries.learned.base import Learned
from rayscope.dictionaries.learned.bottleneck import BottleneckTopK
from rayscope.dictionaries.learned.gated import Gated
from rayscope.dictionaries.learned.jumprelu import JumpReLU
from rayscope.dictionaries.learned.l1 import L1
from rayscope.dictionaries.learned.matryoshka import MatryoshkaAbsTopK, MatryoshkaBatchTopK, MatryoshkaTopK
from rayscope.dictionaries.learned.tied import TiedTopK
from rayscope.dictionaries.learned.token_bias import TokenBiasTopK

__all__ = [
    "L1",
    "AbsTopK",
    "BatchTopK",
    "BottleneckTopK",
    "Gated",
    "JumpReLU",
    "Learned",
    "MatryoshkaAbsTopK",
    "MatryoshkaBatchTopK",
    "MatryoshkaTopK",
    "TiedTopK",
    "TokenBiasTopK",
    "TopK",
]
