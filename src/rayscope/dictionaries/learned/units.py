"""Units: what each side of a dictionary, its input and its output, is scaled by while it learns.

N vectors, D site width.
"""

import torch
from torch import Tensor, nn

from rayscope.dictionaries.learned.whitening import Whitening


class Units(nn.Module):
    """y = s x, or, whitened, y = s (x - m) P (see `Whitening`)."""

    scale: Tensor
    whitening: Whitening | None

    def __init__(self, width: int, whiten: bool):
        super().__init__()
        self.width = width
        self.register_buffer("scale", torch.ones(()))
        self.whitening = Whitening(width) if whiten else None

    @torch.no_grad()
    def fit(self, x_ND: Tensor) -> Tensor:
        """Sets m and P from a sample, and s = sqrt(D / E|x|^2). Returns E[y] (D), in float64."""
        if self.whitening is not None:
            self.whitening.fit(x_ND)
            x_ND = self.whitening(x_ND.to(self.scale.dtype))
        power = x_ND.double().square().sum(1).mean()
        if power == 0:
            raise ValueError(f"all {len(x_ND)} sample vectors are zero: nothing to learn from")
        self.scale.copy_((self.width / power).sqrt())
        return x_ND.double().mean(0) * self.scale.double()

    def forward(self, x_ND: Tensor) -> Tensor:
        x_ND = x_ND.detach().to(self.scale.dtype)
        return (x_ND if self.whitening is None else self.whitening(x_ND)) * self.scale

    def invert(self, y: Tensor) -> Tensor:
        """x of y: of a vector or of each row."""
        return y / self.scale if self.whitening is None else self.whitening.mean_D + self.unwhiten(y) / self.scale

    def unwhiten(self, y: Tensor) -> Tensor:
        """Maps differences of vectors out of whitened space, without the scale."""
        return y if self.whitening is None else y @ self.whitening.inverse_DD

    @torch.no_grad()
    def reset(self) -> None:
        """y = x."""
        self.scale.fill_(1)
        self.whitening = None


class Sides(nn.ModuleDict):
    """The units of the "input" and, in a dictionary that writes another site than it reads, of the "output"."""

    @property
    def inner(self) -> Units:
        return self.each()["input"]

    @property
    def outer(self) -> Units:
        return self.each().get("output", self.inner)

    def each(self) -> dict[str, Units]:
        return dict(self.items())  # type: ignore[arg-type]
