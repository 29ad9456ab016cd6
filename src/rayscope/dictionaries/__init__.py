"""Dictionaries of rays (non-negative codes) and directions (signed codes), learned or given, behind one interface.

Needs torch and safetensors alone.
"""

from rayscope.dictionaries.autoencoders import AbsTopK, BatchTopK, TopK
from rayscope.dictionaries.base import Codes, Dictionary, find, load
from rayscope.dictionaries.learned import Learned
from rayscope.dictionaries.linear import Linear

__all__ = ["AbsTopK", "BatchTopK", "Codes", "Dictionary", "Learned", "Linear", "TopK", "find", "load"]
