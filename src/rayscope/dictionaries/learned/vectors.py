"""What the learned kinds ask of a batch of vectors, and of rows of weights.

N vectors, D site width, L latents.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def spread(x_ND: Tensor) -> Tensor:
    """sum |x - mean|^2 over the batch; 1 if that is 0, so that ratios stay finite."""
    spread = (x_ND - x_ND.mean(0)).square().sum()
    return torch.where(spread > 0, spread, 1)


def within_caps(w_LD: Tensor, centre_LD: Tensor, cosine: float) -> Tensor:
    """Unit rows w; one outside the cap around its unit centre c goes to the nearest point of the cap's edge.

    That is cosine * c + sine * (the unit vector of w's part orthogonal to c).
    """
    along_L1 = (w_LD * centre_LD).sum(1, keepdim=True)
    across_LD = F.normalize(w_LD - along_L1 * centre_LD)
    return torch.where(along_L1 >= cosine, w_LD, cosine * centre_LD + (1 - cosine**2) ** 0.5 * across_LD)


def check_finite(x_ND: Tensor) -> None:
    """Raises ValueError if a vector holds NaN or infinity."""
    if x_ND.sum().isfinite():
        return
    bad = int((~x_ND.isfinite().all(1)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(x_ND)} activation vectors hold NaN or inf; use finite ones (a wider precision?)"
        )


def full_precision(x_ND: Tensor) -> torch.autocast:
    return torch.autocast(x_ND.device.type, enabled=False)
