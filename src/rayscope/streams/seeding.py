"""Random numbers that depend on a key alone, such as (seed, batch number)."""

import hashlib

import torch
from torch import Tensor

STREAMS = {"pass": 0, "round": 1, "evaluation": 2}


def permutation(size: int, seed: int, stream: str, number: int) -> Tensor:
    """A permutation drawn from (seed, stream, number); the seed is any whole number."""
    key = (seed * 1_000_003 + int(number)) * len(STREAMS) + STREAMS[stream]
    if not -(2**63) <= key < 2**64:  # all that torch takes
        key %= 2**64
    return torch.randperm(size, generator=torch.Generator().manual_seed(key))


def generator_of(*key: str | int) -> torch.Generator:
    """A generator for the key: another key, unrelated numbers."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
