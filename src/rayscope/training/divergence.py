"""Divergence: a dictionary whose loss or weights are no longer finite numbers."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from rayscope.dictionaries import Learned
from rayscope.model.sites import Site


@dataclass(frozen=True)
class Divergence:
    """tokens: how many had been trained on."""

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
    """Whether all weights are finite numbers. One pass without a mask, unless a sum overflows."""
    return all(bool(p.sum().isfinite()) or bool(p.isfinite().all()) for p in module.parameters())


def without(
    dictionaries: dict[Site, dict[str, Learned]], diverged: Iterable[Divergence]
) -> dict[Site, dict[str, Learned]]:
    """The dictionaries that have not diverged."""
    lost = {(divergence.hook, divergence.name) for divergence in diverged}
    return {
        site: {name: d for name, d in of_site.items() if (site.hook, name) not in lost}
        for site, of_site in dictionaries.items()
    }
