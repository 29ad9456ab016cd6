"""Divergence: a dictionary whose loss or weights are no longer finite numbers."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Divergence:
    """tokens: those trained on when it was found."""

    hook: str
    name: str
    step: int
    tokens: int
    lr: float

    def __str__(self) -> str:
        return f"{self.name} at {self.hook} after step {self.step} ({self.tokens:,} tokens, lr={self.lr:g})"


class NothingLeft(Exception):
    """Every dictionary has diverged."""


@torch.no_grad()
def finite(module: nn.Module) -> bool:
    """Is every weight a finite number? One pass without a mask, unless a sum overflows."""
    return all(bool(p.sum().isfinite()) or bool(p.isfinite().all()) for p in module.parameters())
