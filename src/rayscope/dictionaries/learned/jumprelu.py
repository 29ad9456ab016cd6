"""JumpReLU: rays with a threshold per latent, learned through its jump (Rajamanoharan et al. 2024, 2407.14435).

N vectors, C vectors of a chunk, D site width, L latents, M chosen (vector, latent) pairs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rayscope.dictionaries.learned.penalised import Penalised
from rayscope.dictionaries.learned.units import Units
from rayscope.dictionaries.sparse.kernels import SparsePattern, gather_dot, of_latents
from rayscope.dictionaries.sparse.selection import above, choose_above

SPARSITIES = ("quadratic", "step", "tanh")


class JumpReLU(Penalised):
    """z = pre where pre > theta_l = exp(log_theta_l), else 0.

    A jump has no gradient for theta. A rectangle of width h = bandwidth (in units in which E|x|^2 = D) replaces it:
    dz/dtheta = -theta / h and dL0/dtheta = -1 / h if |pre - theta| < h / 2. The sparsity loss, L0 the batch's mean:

    quadratic  coefficient * (L0 / k - 1)^2; coefficient None: 10; not steered, since it has its minimum at k;
    step       coefficient * L0;
    tanh       coefficient * mean over vectors of sum_l tanh(steepness z_l), which moves W_enc too (Anthropic, January
               2025).
    """

    kind = "jumprelu"

    def __init__(self, *args, sparsity: str = "quadratic", bandwidth: float = 0.3, steepness: float = 4.0, **kwargs):
        super().__init__(*args, **kwargs)
        if sparsity not in SPARSITIES:
            raise ValueError(f"sparsity={sparsity!r}; it is one of {', '.join(SPARSITIES)}")
        if not bandwidth > 0:
            raise ValueError(f"bandwidth={bandwidth} must be above 0")
        if not steepness > 0:
            raise ValueError(f"steepness={steepness} must be above 0")
        self.sparsity, self.bandwidth, self.steepness = sparsity, bandwidth, steepness
        if sparsity == "quadratic" and self.coefficient is None:
            self.coefficient = 10.0
        self.first_coefficient = 0.1 / self.k
        self.log_theta_L = nn.Parameter(torch.zeros(self.latents))

    def arguments(self) -> dict[str, Any]:
        own = ("sparsity", "bandwidth", "steepness")
        return {**super().arguments(), **{name: getattr(self, name) for name in own}}

    @property
    def theta_L(self) -> Tensor:
        return self.log_theta_L.exp()

    def _start_at(self, threshold: Tensor) -> None:
        self.log_theta_L.copy_(threshold.clamp_min(1e-3).log())

    def choose(self, centred_ND: Tensor) -> SparsePattern:
        """Codes, and latents less than h / 2 below their threshold."""
        lowest_L = self.theta_L - self.bandwidth / 2
        return choose_above(centred_ND, self.W_enc_LD, self.b_enc_L - lowest_L)

    def active_codes(self, products_CL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b_enc_L = self.b_enc_L.detach()
        counts_C, places, _ = above(products_CL, b_enc_L - self.theta_L, 0.0)
        indices = places % self.latents
        return counts_C, indices, products_CL.flatten()[places] + b_enc_L[indices]

    def _codes(self, x_ND: Tensor, pattern: SparsePattern) -> tuple[Tensor, Tensor]:
        pre_M = gather_dot(x_ND, self.W_enc_LD, self.b_enc_L, self.centre_D, pattern)
        step_M, theta_M = self._step(pre_M.detach(), pattern)
        return pre_M * step_M.detach() + theta_M * (step_M - step_M.detach()), pre_M

    def _step(self, pre_M: Tensor, pattern: SparsePattern) -> tuple[Tensor, Tensor]:
        """(1 above theta and 0 below, with the rectangle's gradient to theta; theta without gradient)."""
        theta_M = of_latents(self.log_theta_L, pattern).exp()
        fixed_M = theta_M.detach()
        near_M = ((pre_M - fixed_M).abs() < self.bandwidth / 2).to(pre_M)
        return (pre_M > fixed_M).to(pre_M) - near_M / self.bandwidth * (theta_M - fixed_M), fixed_M

    def penalties(self, x_ND: Tensor, pattern: SparsePattern, pre_M: Tensor, values_M: Tensor) -> dict[str, Tensor]:
        if self.sparsity == "tanh":
            total = (self.steepness * values_M).tanh().sum()
        else:
            total = self._step(pre_M.detach(), pattern)[0].sum()
        l0 = total / len(x_ND)
        loss = (l0 / self.k - 1).square() if self.sparsity == "quadratic" else l0
        return {"sparsity": (self.pressure * loss).to(x_ND)}

    def fold_input(self, units: Units) -> None:
        super().fold_input(units)
        self.log_theta_L -= units.scale.log()
