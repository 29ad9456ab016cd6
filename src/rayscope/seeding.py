"""Random numbers that depend on a key alone, such as ("round", seed, number): a new use changes no old one."""

import hashlib

import torch


def generator_of(*key: str | int) -> torch.Generator:
    """A generator for the key, of names and whole numbers: another key, unrelated numbers."""
    parts = tuple(part if isinstance(part, str) else int(part) for part in key)  # numpy's numbers are written otherwise
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
