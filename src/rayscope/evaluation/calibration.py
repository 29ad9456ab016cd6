"""Calibration: what validation text shows of a dictionary's codes.

N vectors, L latents, M non-zero codes of N vectors, V codes seen, P places: later positions, position 0 (see
`positions`), C cells: an end of a latent at a place.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from rayscope.dictionaries import Codes, Dictionary
from rayscope.evaluation.seconds import Stopwatch
from rayscope.model.sites import Site
from rayscope.streams.positions import VIEWS
from rayscope.streams.stream import Batch
from rayscope.streams.windows import Window

Key = TypeVar("Key", bound=Hashable)


class Calibration:
    """Every code of validation vectors, and how often each latent fires there.

    Position 0 is kept apart: its codes may be a hundred times those of any other, and a decoder knows the position. So
    are the two ends of a signed latent, z > 0 and z < 0, unless `ends` is False: then codes keep their sign.

    error: the sum over later positions of |x - x_hat|^2, codes as they are.
    """

    def __init__(self, latents: int, device: torch.device | str = "cpu", ends: bool = True):
        self.latents, self.ends = latents, ends
        self.fired_PL = torch.zeros(2, latents, dtype=torch.int64, device=device)
        self.vectors_P = torch.zeros(2, dtype=torch.int64, device=device)
        self.error = 0.0
        self.seen: list[tuple[Tensor, Tensor]] = []  # on the CPU, 8 bytes per code

    @torch.no_grad()
    def update(self, codes: Codes, first_N: Tensor) -> None:
        """first_N: which of the vectors are at position 0."""
        self.fired_PL += places(codes, first_N).bincount(minlength=2 * self.latents).view(2, -1)
        self.vectors_P += first_N.to(self.vectors_P.device).long().bincount(minlength=2)
        cells_M, sizes_M = cells(codes, first_N, self.ends)
        self.seen.append((cells_M.to("cpu", torch.int32), sizes_M.detach().to("cpu", torch.float32)))

    def frequency(self, view: str) -> Tensor:
        """(L): (count + 1/2) / (vectors + 1), so that no latent has probability 0 or 1.

        NaN if no vector was seen.
        """
        there = VIEWS[view]
        vectors = self.vectors_P[there].sum()
        frequency_L = (self.fired_PL[there].sum(0) + 0.5).double() / (vectors + 1)
        return frequency_L if vectors else torch.full_like(frequency_L, torch.nan)

    @cached_property
    def values(self) -> "Values":
        """Raises ValueError if no vector was seen at all."""
        if not self.vectors_P.sum():
            raise ValueError("validation: no vector, so no levels that codes could be put on; give some")
        cells_V, sizes_V = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        return Values.of(cells_V.long(), sizes_V.double(), 2 * (1 + self.ends) * self.latents)


@dataclass(frozen=True)
class Values:
    """The codes seen, each as u in [0, 1] of its cell's range: |z| = low + width u. In order of cell and then u.

    A range is what was seen and the more room the fewer values n that was: from low / w to w high, w = 1 + 1 / n. A
    cell never seen has the range of all cells of its place, and of all places if none was.
    """

    count_C: Tensor
    low_C: Tensor
    width_C: Tensor
    cell_V: Tensor
    u_V: Tensor

    @classmethod
    def of(cls, cells_V: Tensor, sizes_V: Tensor, cells: int) -> "Values":
        count_C = cells_V.bincount(minlength=cells)
        low_C = sizes_V.new_full((cells,), torch.inf).scatter_reduce_(0, cells_V, sizes_V, "amin")
        high_C = sizes_V.new_full((cells,), -torch.inf).scatter_reduce_(0, cells_V, sizes_V, "amax")
        low_C, high_C = fallback(low_C, count_C, torch.amin), fallback(high_C, count_C, torch.amax)
        wider_C = torch.where(count_C > 0, 1 + 1 / count_C, 1.0)
        low_C = torch.where(low_C > 0, low_C / wider_C, low_C * wider_C)
        width_C = torch.where(high_C > 0, high_C * wider_C, high_C / wider_C) - low_C
        u_V = scaled(sizes_V, low_C[cells_V], width_C[cells_V])
        order_V = (u_V + 3 * cells_V).argsort()
        return cls(count_C, low_C, width_C, cells_V[order_V], u_V[order_V])

    @property
    def place_C(self) -> Tensor:
        """(C): where there are values for a cell: its place, or the other if nothing was seen at its own."""
        seen_P = self.count_C.view(2, -1).any(1)
        place_P = torch.arange(2).where(seen_P, seen_P.long().argmax())
        return place_P.repeat_interleave(len(self.count_C) // 2)

    def of_cells(self, chosen_C: Tensor, table_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(table, u, weight 1) of the values of the chosen cells, in order of both; table_C rises with their number."""
        chosen_V = chosen_C[self.cell_V]
        u_V = self.u_V[chosen_V]
        return table_C[self.cell_V[chosen_V]], u_V, torch.ones_like(u_V)

    def of_place(self, place: int, table: int) -> tuple[Tensor, Tensor, Tensor]:
        """(table, u, weight) of the values there in order of u; weight: width^2 over its mean."""
        u_V, weight_V = self.places[place]
        return torch.full_like(u_V, table, dtype=torch.int64), u_V, weight_V

    @cached_property
    def places(self) -> list[tuple[Tensor, Tensor]]:
        """(u, weight) of all values of each place, in order of u."""
        start = int(self.count_C.view(2, -1)[0].sum())
        found = []
        for there in (slice(0, start), slice(start, None)):
            u_V, order_V = self.u_V[there].sort()
            weight_V = self.width_C[self.cell_V[there][order_V]].square()
            found.append((u_V, weight_V / weight_V.mean().clamp_min(torch.finfo(weight_V.dtype).tiny)))
        return found


def fallback(limit_C: Tensor, count_C: Tensor, extreme: Callable[..., Tensor]) -> Tensor:
    """For the infinite limit of a cell never seen the extreme of its place's, or of all, or 0 if there is none."""
    limit_PC, seen_PC = limit_C.view(2, -1), count_C.view(2, -1) > 0
    whole_P = extreme(limit_PC, dim=1)
    whole_P = torch.where(seen_PC.any(1), whole_P, extreme(whole_P, dim=0)).nan_to_num(posinf=0, neginf=0)
    return torch.where(seen_PC, limit_PC, whole_P[:, None]).flatten()


def scaled(sizes_M: Tensor, low_M: Tensor, width_M: Tensor) -> Tensor:
    """(M): places in their ranges, those outside at an end; 0 where the range is one point."""
    return torch.where(width_M > 0, (sizes_M.double() - low_M) / width_M, 0.0).clamp_(0, 1)


def places(codes: Codes, first_N: Tensor) -> Tensor:
    """(M): each code's place in a flattened [P, L]."""
    first_M = first_N.to(codes.offsets.device).repeat_interleave(codes.offsets.diff(), output_size=len(codes.indices_M))
    return codes.indices_M + codes.latents * first_M


def cells(codes: Codes, first_N: Tensor, ends: bool) -> tuple[Tensor, Tensor]:
    """(each code's cell in a flattened [P, L] or, with ends, [P, L, 2]; its |z|, or without ends z)."""
    places_M = places(codes, first_N)
    if not ends:
        return places_M, codes.values_M
    return 2 * places_M + (codes.values_M < 0), codes.values_M.abs()


@torch.no_grad()
def calibrate_codes(
    dictionaries: Mapping[Site, Mapping[Key, Dictionary]],
    parts: Iterable[Window | Batch],
    stopwatch: Stopwatch | None = None,
) -> dict[Site, dict[Key, Calibration]]:
    """What validation text shows of every dictionary's codes. stopwatch: keeps how long each takes."""
    stopwatch = stopwatch or Stopwatch()
    seen = {
        site: {n: Calibration(d.latents, d.device, ends=d.allocation_L is None) for n, d in named.items()}
        for site, named in dictionaries.items()
    }
    for part in parts:
        for site, named in dictionaries.items():
            vectors, later_N = part.at(site), ~part.at(site).first_N
            for name, dictionary in named.items():
                here = vectors.to(dictionary.device)
                codes = stopwatch.encode(site, name, dictionary, here)
                seen[site][name].update(codes, vectors.first_N)
                error_ND = here.target_ND - dictionary.decode_sparse(codes, vectors.tokens_N)
                seen[site][name].error += error_ND[later_N.to(error_ND.device)].double().square().sum().item()
    return seen
