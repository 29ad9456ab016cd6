"""Dictionaries of rays (non-negative codes) and directions (signed codes), learned or given, behind one interface.

Needs torch and safetensors alone.
"""

from rayscope.dictionaries.base import KINDS, Codes, Dictionary
from rayscope.dictionaries.learned.autoencoders import AbsTopK, BatchTopK, TopK
from rayscope.dictionaries.learned.base import Learned
from rayscope.dictionaries.learned.bottleneck import BottleneckTopK
from rayscope.dictionaries.learned.gated import Gated
from rayscope.dictionaries.learned.jumprelu import JumpReLU
from rayscope.dictionaries.learned.l1 import L1
from rayscope.dictionaries.learned.matryoshka import MatryoshkaAbsTopK, MatryoshkaBatchTopK, MatryoshkaTopK
from rayscope.dictionaries.learned.tied import TiedTopK
from rayscope.dictionaries.learned.token_bias import TokenBiasTopK
from rayscope.dictionaries.linear import Linear
from rayscope.dictionaries.loading import find, fingerprint, load
from rayscope.dictionaries.recoding import Recoded, recoded
from rayscope.dictionaries.transform import Transform

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
    "Recoded",
    "TiedTopK",
    "TokenBiasTopK",
    "TopK",
    "Transform",
    "find",
    "fingerprint",
    "load",
    "recoded",
]
