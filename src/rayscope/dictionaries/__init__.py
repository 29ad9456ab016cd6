"""Dictionaries of rays (non-negative codes) and directions (signed codes), learned or given, behind one interface.

Needs torch and safetensors alone.
"""

from rayscope.dictionaries.autoencoders import AbsTopK, BatchTopK, TopK
from rayscope.dictionaries.base import KINDS, Codes, Dictionary
from rayscope.dictionaries.bottleneck import BottleneckTopK
from rayscope.dictionaries.gated import Gated
from rayscope.dictionaries.jumprelu import JumpReLU
from rayscope.dictionaries.l1 import L1
from rayscope.dictionaries.learned import Learned
from rayscope.dictionaries.linear import Linear, recoded
from rayscope.dictionaries.loading import find, fingerprint, load
from rayscope.dictionaries.matryoshka import MatryoshkaAbsTopK, MatryoshkaBatchTopK, MatryoshkaTopK
from rayscope.dictionaries.tied import TiedTopK
from rayscope.dictionaries.token_bias import TokenBiasTopK

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
