"""Which positions of whole rows count.

Position 0 is known by its index. It sees no other position, and in GPT-2 its activations are many times as large as any
other's, whatever its token. No stream holds it; an evaluation measures once with it excluded and once with it included.

Special tokens are known by their ids, all those of the tokenizer: separators, and padding and BOS if it has them. No
stream holds them, and codes never replace their activations, except at position 0.

R rows, C context, N vectors, P places: later positions, position 0.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

LATER = slice(1, None)  # the positions of a row after 0, whose tokens are those that are predicted
VIEWS = {"excluded": slice(0, 1), "included": slice(0, 2)}  # of position 0, and the places P that each counts
Tokens = TypeVar("Tokens", np.ndarray, Tensor)


def is_special(tokens_RC: Tokens, special: Sequence[int]) -> Tokens:
    """[R, C]: whether the token's id is among `special`."""
    if isinstance(tokens_RC, Tensor):
        return torch.isin(tokens_RC, torch.tensor(special, dtype=tokens_RC.dtype, device=tokens_RC.device))
    return np.isin(tokens_RC, special)


def in_stream(tokens_RC: Tokens, special: Sequence[int]) -> Tokens:
    """[R, C]: the positions that dictionaries are trained on: neither position 0 nor a special token."""
    kept_RC = ~is_special(tokens_RC, special)
    kept_RC[:, 0] = False
    return kept_RC


def coded(tokens_RC: Tokens, special: Sequence[int]) -> Tokens:
    """[R, C]: the positions that dictionaries are measured on: those in a stream and position 0."""
    kept_RC = ~is_special(tokens_RC, special)
    kept_RC[:, 0] = True
    return kept_RC


def first(tokens_RC: Tensor) -> Tensor:
    """[R, C]: position 0."""
    return (torch.arange(tokens_RC.shape[1], device=tokens_RC.device) == 0).expand(tokens_RC.shape)


def counted(first_N: Tensor, view: str) -> Tensor:
    """[N]: the vectors that a view counts, first_N of which are at position 0."""
    return torch.ones_like(first_N) if view == "included" else ~first_N


def keep_first(x_RCD: Tensor, x_hat_RCD: Tensor) -> Tensor:
    """x_hat, except that position 0 keeps its own activation."""
    return torch.cat([x_RCD[:, :1], x_hat_RCD[:, LATER]], dim=1)


def stream_sizes(tokens_RC: np.ndarray, special: Sequence[int], chunk: int = 2**24) -> np.ndarray:
    """sizes_R: how many positions of each row a stream holds. Memory-mapped tokens are read `chunk` at a time."""
    step = max(1, chunk // tokens_RC.shape[1])
    parts = (tokens_RC[start : start + step] for start in range(0, len(tokens_RC), step))
    return np.concatenate([in_stream(part, special).sum(1) for part in parts])
