"""Polarity: how much a signed latent uses both of its ends, and whether the ends occur with the same rays.

N vectors, L latents of the signed dictionary, K of them, E = 2K their ends, R rays of another dictionary,
P parts of the documents, B bootstrap draws, M non-zero codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries import Codes

PARTS = 64  # documents are resampled as so many groups, by the remainder of their number
CARRYING = 0.9  # share of the energy of all codes
QUARTER = 0.25  # of a latent's energy: half-way between a ray's polarity, 0, and an even line's, 1/2


@dataclass(frozen=True)
class Polarity:
    """Energy and count of each end of each latent, with the vectors seen, of each part of the documents.

    Throughout, an end is one of the two signs: row 0 positive, row 1 negative.
    """

    energy_P2L: Tensor
    fired_P2L: Tensor
    vectors_P: Tensor

    @classmethod
    def of(cls, latents: int) -> "Polarity":
        zeros = lambda *shape: torch.zeros(PARTS, *shape, dtype=torch.float64)  # noqa: E731
        return cls(zeros(2, latents), zeros(2, latents), zeros())

    def update(self, codes: Codes, documents_N: Tensor) -> None:
        parts_N = documents_N.cpu() % PARTS
        cells_M = (2 * parts_N[codes.rows_M.cpu()] + (codes.values_M < 0).cpu()) * codes.latents + codes.indices_M.cpu()
        values_M = codes.values_M.detach().cpu().double()
        self.energy_P2L.view(-1).index_add_(0, cells_M, values_M.square())
        self.fired_P2L.view(-1).index_add_(0, cells_M, torch.ones_like(values_M))
        self.vectors_P.index_add_(0, parts_N, torch.ones(len(codes), dtype=torch.float64))

    @property
    def polarity_L(self) -> Tensor:
        """min(q+, q-) / (q+ + q-), q the energy of each end: 0 for a ray, 1/2 if both weigh the same; NaN if silent."""
        return polarity(self.energy_P2L.sum(0))

    @property
    def density_L(self) -> Tensor:
        return self.fired_P2L.sum((0, 1)) / self.vectors_P.sum()

    @property
    def bipolar_L(self) -> Tensor:
        """Which latents bipolar_share counts."""
        return bipolar(self.energy_P2L.sum(0))

    def bipolar_share(self, weights_BP: Tensor | None = None) -> Tensor:
        """[B]: share of the carrying latents of which each end has at least a quarter of the energy.

        Carrying are the fewest latents that together have nine tenths of the energy of all codes. Each counts once, so
        that a few frequent latents do not decide; what is silent, or fires weakly to fill up the k, does not carry.
        """
        energy_B2L = energies(self.energy_P2L, weights_BP)
        return bipolar(energy_B2L).sum(1).double() / carrying(energy_B2L.sum(1)).sum(1)

    def mean_polarity(self, weights_BP: Tensor | None = None) -> Tensor:
        """[B]: mean over latents of the polarity, by energy: the share of it that lies in each latent's lesser end."""
        energy_B2L = energies(self.energy_P2L, weights_BP)
        return energy_B2L.amin(1).sum(1) / energy_B2L.sum((1, 2))


def energies(energy_P2L: Tensor, weights_BP: Tensor | None) -> Tensor:
    weights_BP = torch.ones(1, len(energy_P2L), dtype=torch.float64) if weights_BP is None else weights_BP
    return (weights_BP @ energy_P2L.flatten(1)).view(len(weights_BP), *energy_P2L.shape[1:])


def polarity(energy_2L: Tensor) -> Tensor:
    return energy_2L.amin(-2) / energy_2L.sum(-2)


def carrying(energy_BL: Tensor) -> Tensor:
    """The fewest latents that together have CARRYING of the energy."""
    sorted_BL, order_BL = energy_BL.sort(dim=-1, descending=True, stable=True)
    before_BL = sorted_BL.cumsum(-1) - sorted_BL
    kept_BL = (before_BL < CARRYING * sorted_BL.sum(-1, keepdim=True)) & (sorted_BL > 0)
    return torch.zeros_like(kept_BL).scatter_(-1, order_BL, kept_BL)


def bipolar(energy_2L: Tensor) -> Tensor:
    return (polarity(energy_2L) >= QUARTER) & carrying(energy_2L.sum(-2))


class Ends:
    """Do both ends of a signed latent occur with the same rays? Rays are those of another, ray dictionary.

    c(e) = (rate at which each ray fires where end e does) - (its rate everywhere), in R^rays;
    shared = mean over latents l of cos(c(l+), c(l-)), null = mean of cos(c(l+), c(l'-)) over all pairs l != l'.
    High above the null: one context, in which the latent takes either value, as opposites do. At the null: the ends are
    unrelated (two rays that share a row), or the latent has no context of its own.

    Why rays, not vectors: the mean vectors at the ends of a latent along f - g, which serves unrelated f and g, both
    leave (f + g) / 2 once the latent's direction is projected out: cosine 1. Rays of an overcomplete dictionary tell f
    from g.
    """

    def __init__(self, chosen_K: Tensor, latents: int, rays: int):
        K = len(chosen_K)
        self.place_L = torch.full((latents,), -1).index_put_((chosen_K.cpu(),), torch.arange(K))
        self.beside_ER = torch.zeros(2 * K, rays)
        self.fired_E = torch.zeros(2 * K)
        self.fired_R = torch.zeros(rays)
        self.vectors = 0

    def update(self, codes: Codes, rays: Codes) -> None:
        """codes, rays: of the same N vectors by either dictionary."""
        place_M = self.place_L[codes.indices_M.cpu()]
        kept_M = place_M >= 0
        ends_M = 2 * place_M[kept_M] + (codes.values_M.cpu()[kept_M] < 0)
        at_EN = torch.stack([ends_M, codes.rows_M.cpu()[kept_M]])
        shape = (len(self.fired_E), len(codes))
        one_EN = torch.sparse_coo_tensor(at_EN, torch.ones(len(ends_M)), shape, check_invariants=False)
        fires_NR = (rays.dense() != 0).float().cpu()
        self.beside_ER += torch.sparse.mm(one_EN, fires_NR)
        self.fired_E.index_add_(0, ends_M, torch.ones(len(ends_M)))
        self.fired_R += fires_NR.sum(0)
        self.vectors += len(codes)

    def shared(self) -> tuple[float, float]:
        """(shared, null); NaN for fewer than two latents."""
        K = len(self.fired_E) // 2
        if K < 2:
            return float("nan"), float("nan")
        rate_ER = self.beside_ER.double() / self.fired_E.clamp(min=1)[:, None]
        c_K2R = F.normalize(rate_ER - self.fired_R.double() / max(self.vectors, 1), eps=1e-30).view(K, 2, -1)
        own = (c_K2R[:, 0] * c_K2R[:, 1]).sum()
        every = c_K2R[:, 0].sum(0) @ c_K2R[:, 1].sum(0)
        return (own / K).item(), ((every - own) / (K * (K - 1))).item()
