"""TiedTopK: TopK rays in pairs that point opposite ways.

D site width, L latents, m = L / 2 pairs: latent l < m and latent l + m share a row.
"""

import torch
from torch import Tensor

from rayscope.dictionaries.learned.autoencoders import TopK


class TiedTopK(TopK):
    """TopK of 2m rays with W_dec[l + m] = -W_dec[l] and W_enc[l + m] = -W_enc[l]: m free rows, one bias per ray.

    If biases are 0, z[l] - z[l + m] is AbsTopK's code l of the same m rows at the same k: the expressivity of m signed
    directions in non-negative codes. Both halves are kept in memory; a file holds the first.
    """

    kind = "tied_topk"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.latents % 2:
            raise ValueError(f"latents={self.latents} must be even: they are pairs of opposite rays")
        with torch.no_grad():
            self._tie()

    def _tie(self) -> None:
        m = self.latents // 2
        for W_LD in (self.W_enc_LD, self.W_dec_LD, self.initial_LD):
            if W_LD is not None:
                torch.neg(W_LD[:m], out=W_LD[m:])

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Spreads each pair's gradient, g[l] - g[l + m], over its two rows: an update keeps them opposite, and clipping
        sees the norm of the m free rows' gradient."""
        m = self.latents // 2
        for W_LD in (self.W_enc_LD, self.W_dec_LD):
            if W_LD.grad is not None:
                half_mD = (W_LD.grad[:m] - W_LD.grad[m:]) / 2**0.5
                W_LD.grad = torch.cat([half_mD, -half_mD])
        super().project_gradients()

    @torch.no_grad()
    def project_weights(self) -> None:
        super().project_weights()
        self._tie()  # an optimiser may round two opposite numbers differently

    def due(self, due_L: Tensor) -> Tensor:
        """Only pairs of which both rays are dead; `_tie` then turns the second's row round."""
        m, dead_L = self.latents // 2, self.firing.dead_L
        return ((due_L[:m] | due_L[m:]) & dead_L[:m] & dead_L[m:]).repeat(2)

    def weights(self) -> dict[str, Tensor]:
        m = self.latents // 2
        return {name: t[:m] if name in ("W_enc_LD", "W_dec_LD") else t for name, t in super().weights().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        tied = ("W_enc_LD", "W_dec_LD")
        super().load_weights({name: torch.cat([t, -t]) if name in tied else t for name, t in weights.items()})
