"""Firing: how often each latent fires while a dictionary learns, and which have fallen silent.

L latents, M non-zero codes of a batch.
"""

import torch
from torch import Tensor, nn


class Firing(nn.Module):
    """Counters. A latent is dead after dead_window tokens without firing."""

    state = ("silent_L", "fired_L", "counted", "dead_window")
    silent_L: Tensor  # tokens since each last fired
    fired_L: Tensor  # how often each fired since the density was last taken, in so many tokens:
    counted: Tensor
    dead_window: Tensor

    def __init__(self, latents: int):
        super().__init__()
        self.register_buffer("silent_L", torch.zeros(latents, dtype=torch.int64))
        self.register_buffer("fired_L", torch.zeros(latents, dtype=torch.int64))
        self.register_buffer("counted", torch.zeros((), dtype=torch.int64))
        self.register_buffer("dead_window", torch.tensor(10_000_000))

    @property
    def dead_L(self) -> Tensor:
        return self.silent_L >= self.dead_window

    def due_L(self, tokens: int) -> Tensor:
        """Which have been silent for one, two, ... dead windows in the last so many tokens: they are to be revived."""
        return self.dead_L & (self.silent_L % self.dead_window < tokens)

    @torch.no_grad()
    def count(self, fired_M: Tensor, tokens: int) -> None:
        """fired_M: the latent of each non-zero code of a batch of so many tokens."""
        self.silent_L += tokens
        self.silent_L[fired_M] = 0
        self.fired_L += fired_M.bincount(minlength=len(self.fired_L))
        self.counted += tokens

    @torch.no_grad()
    def take_density(self) -> Tensor:
        """(L): the fraction of tokens on which each latent fired since this was last called."""
        density_L = self.fired_L / self.counted.clamp(min=1)
        self.fired_L.zero_()
        self.counted.zero_()
        return density_L
