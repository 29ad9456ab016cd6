"""Whitening: the units that a dictionary with `whiten` learns in, until they are folded into its weights.

N vectors, D width.
"""

import torch
from torch import Tensor, nn


class Whitening(nn.Module):
    """y = (x - m) P, P = S^-1/2 the symmetric root, S the shrunken covariance of a sample; x = m + y P^-1.

    Rows are vectors. Before `fit` it changes nothing. In x, a dictionary's directions are the rows of W_dec P^-1 at
    unit length; codes are multiplied by the length that these had, after latents are chosen, so the choice is the same.
    P^-1 enlarges what a row keeps of strong directions: take care with codes, and with cosines between directions.
    """

    state = ("whitening.mean_D", "whitening.P_DD", "whitening.inverse_DD")
    mean_D: Tensor
    P_DD: Tensor
    inverse_DD: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("P_DD", torch.eye(width))
        self.register_buffer("inverse_DD", torch.eye(width))

    @torch.no_grad()
    def fit(self, x_ND: Tensor) -> None:
        """Raises ValueError if all vectors are the same."""
        mean_D, covariance_DD = ledoit_wolf(x_ND.double())
        values_D, columns_DD = torch.linalg.eigh(covariance_DD)
        if values_D[0] <= 0:
            raise ValueError(f"whiten: the {len(x_ND)} sample vectors are all the same; there is nothing to whiten")
        self.mean_D.copy_(mean_D)
        self.P_DD.copy_(columns_DD @ (columns_DD / values_D.sqrt()).T)
        self.inverse_DD.copy_(columns_DD @ (columns_DD * values_D.sqrt()).T)

    def forward(self, x_ND: Tensor) -> Tensor:
        return (x_ND - self.mean_D) @ self.P_DD


def ledoit_wolf(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, (1 - a) C + a tr(C) / D), C the covariance of the sample, a the weight in [0, 1] of least expected error.

    a = min(b, d) / d, d = |C - tr(C) / D|^2, b = (mean |x|^4 - |C|^2) / N, x centred (Ledoit and Wolf 2004, JMVA 88).
    So fewer vectors than dimensions have an inverse root too.
    """
    mean_D = x_ND.mean(0)
    centred_ND = x_ND - mean_D
    N, D = x_ND.shape
    C_DD = centred_ND.T @ centred_ND / N
    mu = C_DD.trace() / D
    squares = C_DD.square().sum()
    d = squares - D * mu.square()
    b = (centred_ND.square().sum(1).square().mean() - squares) / N
    weight = (torch.minimum(b, d) / d).clamp(0, 1) if d > 0 else torch.zeros_like(d)
    return mean_D, (1 - weight) * C_DD + weight * mu * torch.eye(D, dtype=x_ND.dtype, device=x_ND.device)
