"""What the learned kinds ask of a batch of vectors.

N vectors, D site width.
"""

import torch
from torch import Tensor


def spread(x_ND: Tensor) -> Tensor:
    """sum |x - mean|^2 over the batch; 1 if that is 0, so that ratios stay finite."""
    spread = (x_ND - x_ND.mean(0)).square().sum()
    return torch.where(spread > 0, spread, 1)


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
