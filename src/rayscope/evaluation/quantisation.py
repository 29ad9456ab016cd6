"""Codes on 256 levels: what validation text shows of each latent, and the grid that follows from it.

N vectors, L latents, M non-zero codes of N vectors, P places: later positions, position 0 (see `positions`).
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from rayscope.dictionaries import Codes, Dictionary
from rayscope.model.sites import Site
from rayscope.streams.positions import VIEWS
from rayscope.streams.stream import Batch
from rayscope.streams.windows import Window

Key = TypeVar("Key", bound=Hashable)
LEVELS = 256  # the 8 bits of a value that code_length.bits counts


class Calibration:
    """Least and greatest |code| of each latent and how often it fires, over validation vectors.

    Position 0 is kept apart: its codes may be a hundred times those of any other, and a decoder knows the position.
    """

    def __init__(self, latents: int, device: torch.device | str = "cpu"):
        self.latents = latents
        self.low_PL = torch.full((2, latents), torch.inf, device=device)
        self.high_PL = torch.zeros(2, latents, device=device)
        self.fired_PL = torch.zeros(2, latents, dtype=torch.int64, device=device)
        self.vectors_P = torch.zeros(2, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, codes: Codes, first_N: Tensor) -> None:
        """first_N: which of the vectors are at position 0."""
        cells_M, size_M = cells(codes, first_N), codes.values_M.detach().abs().to(self.low_PL.dtype)
        self.low_PL.view(-1).scatter_reduce_(0, cells_M, size_M, "amin")
        self.high_PL.view(-1).scatter_reduce_(0, cells_M, size_M, "amax")
        self.fired_PL += cells_M.bincount(minlength=2 * self.latents).view(2, -1)
        self.vectors_P += first_N.to(self.vectors_P.device).long().bincount(minlength=2)

    def frequency(self, view: str) -> Tensor:
        """(L): (count + 1/2) / (vectors + 1), so that no latent has probability 0 or 1.

        NaN if no vector was seen.
        """
        places = VIEWS[view]
        vectors = self.vectors_P[places].sum()
        frequency_L = (self.fired_PL[places].sum(0) + 0.5).double() / (vectors + 1)
        return frequency_L if vectors else torch.full_like(frequency_L, torch.nan)

    def grid(self) -> "Grid":
        """LEVELS levels from low / w to w high, w = 1 + 1 / n: the n values seen, and the more room the fewer they are.

        A latent never seen at a place has the range of all latents there, and of all places if none was. Raises
        ValueError if no vector was seen at all.
        """
        if not self.vectors_P.sum():
            raise ValueError(
                "validation: no vector, so no range that codes could be put on; give some, or quantise=false"
            )
        seen_PL = self.fired_PL > 0
        wider_PL = 1 + 1 / self.fired_PL
        all_low_P, all_high_P = self.low_PL.amin(1), self.high_PL.amax(1)
        all_low_P = torch.where(seen_PL.any(1), all_low_P, all_low_P.min()).nan_to_num(posinf=0)  # 0: no code at all
        all_high_P = torch.where(seen_PL.any(1), all_high_P, all_high_P.max())
        low_PL = torch.where(seen_PL, self.low_PL / wider_PL, all_low_P[:, None])
        high_PL = torch.where(seen_PL, self.high_PL * wider_PL, all_high_P[:, None])
        return Grid(low_PL, (high_PL - low_PL) / (LEVELS - 1))


@torch.no_grad()
def calibrate_codes(
    dictionaries: Mapping[Site, Mapping[Key, Dictionary]], parts: Iterable[Window | Batch]
) -> dict[Site, dict[Key, Calibration]]:
    """What validation text shows of every dictionary's codes."""
    seen = {
        site: {n: Calibration(d.latents, d.device) for n, d in named.items()} for site, named in dictionaries.items()
    }
    for part in parts:
        for site, named in dictionaries.items():
            vectors = part.at(site)
            for name, dictionary in named.items():
                codes = vectors.to(dictionary.device).encode(dictionary)
                seen[site][name].update(codes, vectors.first_N)
    return seen


@dataclass(frozen=True)
class Grid:
    """|z| becomes the nearest of low + step {0, ..., 255} and keeps its sign, which `bits` counts in addition to the 8.

    Values out of the range go to its ends. As low > 0, a code that is active stays so: L0 and bits are what they were.
    """

    low_PL: Tensor
    step_PL: Tensor

    @torch.no_grad()
    def quantise(self, codes: Codes, first_N: Tensor) -> Codes:
        cells_M = cells(codes, first_N)
        low_M, step_M = self.low_PL.view(-1)[cells_M], self.step_PL.view(-1)[cells_M]
        level_M = codes.values_M.abs().to(low_M.dtype).sub_(low_M)
        level_M.div_(step_M).nan_to_num_(0).round_().clamp_(0, LEVELS - 1)  # 0 / 0 where the range is one point
        size_M = level_M.mul_(step_M).add_(low_M).to(codes.values_M.dtype)
        return replace(codes, values_M=size_M.copysign_(codes.values_M))


def cells(codes: Codes, first_N: Tensor) -> Tensor:
    """(M): each code's place in a flattened [P, L]."""
    first_M = first_N.to(codes.offsets.device).repeat_interleave(codes.offsets.diff(), output_size=len(codes.indices_M))
    return codes.indices_M + codes.latents * first_M
