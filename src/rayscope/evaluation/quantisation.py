"""Quantiser: values on 2^b levels, which are fitted on validation values.

M non-zero codes, V values seen, C cells (see `calibration`), T levels of all tables.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries import Codes
from rayscope.evaluation.calibration import Values, cells, scaled

LEVELS = ("lloyd", "uniform")
OWN = 64  # values that a cell needs for levels of its own,
PER_LEVEL = 8  # and for each of them
STEPS = 100
APART = 3.0  # between tables on their common line
MOST = 16  # bits of a value


@dataclass(frozen=True)
class Quantiser:
    """|z| = low + width u of its cell becomes low + width (the nearest level of the cell's table), and keeps its sign.

    |z| out of its range goes to an end of it. Without `ends` z itself is put on levels, its sign being one of the bits.
    Tables lie on one line, table t from APART t to APART t + 1, so that one search finds a level in any of them.
    """

    ends: bool
    low_C: Tensor
    width_C: Tensor
    table_C: Tensor
    table_T: Tensor
    level_T: Tensor
    floats: int  # stored: the levels that were fitted, and the ranges of cells seen

    @classmethod
    def fit(cls, values: Values, bits_C: Tensor, ends: bool = True, levels: str = "lloyd") -> "Quantiser":
        """2^b levels for each cell of b bits, up to MOST.

        lloyd: Lloyd-Max's, of least squared error on the values seen. A cell with at least OWN values, and PER_LEVEL
        for each level, has levels of its own. All others of a place share theirs, fitted on all values of the place,
        each with the weight width^2 that its squared error has. uniform: the centres of 2^b equal parts of each range.
        """
        fitted = levels == "lloyd"
        own_C = fitted & (values.count_C >= OWN) & (values.count_C >= PER_LEVEL * 2**bits_C)
        table_C, own = own_C.cumsum(0) - 1, int(own_C.sum())
        shared, number = (MOST * values.place_C + bits_C)[~own_C].unique(return_inverse=True)
        table_C[~own_C] = own + number
        table_T, level_T = evenly(torch.cat([bits_C[own_C], shared % MOST]))
        if fitted:
            parts = [values.of_cells(own_C, table_C)]
            parts += [values.of_place(place, own + i) for i, place in enumerate((shared // MOST).tolist())]
            level_T = lloyd(table_T, level_T, *(torch.cat(each) for each in zip(*parts, strict=True)))
        floats = 2 * int((values.count_C > 0).sum()) + fitted * len(level_T)
        return cls(ends, values.low_C, values.width_C, table_C, table_T, level_T, floats)

    def to(self, device: torch.device | str) -> "Quantiser":
        return replace(self, **{name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)})

    @torch.no_grad()
    def quantise(self, codes: Codes, first_N: Tensor) -> Codes:
        sizes_M = self.nearest(*cells(codes, first_N, self.ends)).to(codes.values_M.dtype)
        return replace(codes, values_M=sizes_M.copysign_(codes.values_M) if self.ends else sizes_M)

    def nearest(self, cells_M: Tensor, sizes_M: Tensor) -> Tensor:
        low_M, width_M, table_M = self.low_C[cells_M], self.width_C[cells_M], self.table_C[cells_M]
        line_M = scaled(sizes_M, low_M, width_M).add_(table_M, alpha=APART)
        level_M = torch.searchsorted(midpoints(self.table_T, self.level_T), line_M)
        return self.level_T[level_M].mul_(width_M).add_(low_M)


def evenly(bits: Tensor) -> tuple[Tensor, Tensor]:
    """(table_T, level_T): for each table of b bits the centres of 2^b equal parts of [0, 1]."""
    sizes = 2**bits
    table_T = torch.arange(len(bits)).repeat_interleave(sizes)
    number_T = torch.arange(len(table_T)) - (sizes.cumsum(0) - sizes)[table_T]
    return table_T, (number_T + 0.5) / sizes[table_T]


def lloyd(table_T: Tensor, level_T: Tensor, table_V: Tensor, u_V: Tensor, weight_V: Tensor) -> Tensor:
    """The levels after STEPS of Lloyd-Max on values in order: each the mean of the values that are nearest to it.

    From halfway between even levels and quantiles; a level with no value nearest to it stays. On sums over a
    stretch of values as differences of running sums.
    """
    if not len(u_V):
        return level_T
    count = table_V.bincount(minlength=int(table_T[-1]) + 1)
    quantile_T = u_V[((count.cumsum(0) - count)[table_T] + level_T * count[table_T]).long()]
    level_T = (level_T + quantile_T) / 2
    line_V, sums = u_V + APART * table_V, F.pad(torch.stack([weight_V, weight_V * u_V]).cumsum(1), (1, 0))
    for _ in range(STEPS):
        stops = torch.searchsorted(line_V, midpoints(table_T, level_T))
        mass_T, moment_T = sums[:, F.pad(F.pad(stops, (1, 0)), (0, 1), value=len(u_V))].diff()
        level_T = torch.where(mass_T > 1e-12 * len(u_V), moment_T / mass_T, level_T)
    return level_T


def midpoints(table_T: Tensor, level_T: Tensor) -> Tensor:
    line_T = level_T + APART * table_T
    return (line_T[1:] + line_T[:-1]) / 2
