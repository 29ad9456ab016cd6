"""Folding: the units that a dictionary learns in, and how they are folded into its weights when it is saved.

N vectors, D site width, L latents, M chosen (vector, latent) pairs.
"""

import copy
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.dictionaries.base import Dictionary
from rayscope.dictionaries.learned.firing import Firing
from rayscope.dictionaries.learned.whitening import Whitening


class Folding(Firing):
    """Learns in s x; what is saved reads x. The parameters are a subclass's.

    whiten: learned in y = s (x - m) P instead of s x (see `Whitening`), and so are its losses; the fvu that it leaves is
    that of x. Folded, its encoder reads x, its rows are those of W_dec P^-1 made unit, and gain_L, their length before,
    multiplies the codes after latents are chosen, so that the same are. P^-1 enlarges what a row keeps of strong
    directions: read the codes, and compare rows by their cosine with care.
    """

    training_only: tuple[str, ...] = (
        *Firing.counters,
        "whitening.mean_D",
        "whitening.P_DD",
        "whitening.inverse_DD",
    )  # state of a checkpoint, not of a saved dictionary
    W_enc_LD: Tensor
    W_dec_LD: Tensor
    b_enc_L: Tensor
    b_dec_D: Tensor
    scale: Tensor
    whitening: Whitening | None
    gain_L: Tensor | None

    def __init__(self, width: int, latents: int, k: int, whiten: bool):
        super().__init__(width, latents, k)
        self.whiten = whiten
        self.whitening = Whitening(width) if whiten else None
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("gain_L", torch.ones(latents) if whiten else None)

    def _inside(self, x_ND: Tensor) -> Tensor:
        """s x, or s (x - m) P: what it learns in."""
        x_ND = x_ND.detach().to(self.b_dec_D.dtype)
        return (x_ND if self.whitening is None else self.whitening(x_ND)) * self.scale

    def _outside(self, y: Tensor) -> Tensor:
        """The inverse, of a vector or of each row."""
        return y / self.scale if self.whitening is None else self.whitening.mean_D + self._coloured(y) / self.scale

    def _coloured(self, y: Tensor) -> Tensor:
        """A difference of whitened vectors as one of x, but for the scale."""
        return y if self.whitening is None else y @ self.whitening.inverse_DD

    def _gained(self, values_M: Tensor, indices_M: Tensor) -> Tensor:
        """Codes of unit rows from what latents were chosen by: in a folded dictionary that was whitened, times gain."""
        folded = self.gain_L is not None and self.whitening is None
        return values_M * self.gain_L[indices_M] if folded else values_M  # type: ignore[index]

    @torch.no_grad()
    def fold(self) -> None:
        """Input scale into the biases, and whitening into the weights, in place: nothing that is computed changes."""
        self.b_enc_L /= self.scale
        self.b_dec_D.copy_(self._outside(self.b_dec_D))
        self.scale.fill_(1)
        if self.whitening is not None and self.gain_L is not None:
            rows_LD = self._coloured(self.W_dec_LD)
            self.gain_L.copy_(rows_LD.norm(dim=1))
            self.W_dec_LD.copy_(F.normalize(rows_LD))
            self.W_enc_LD.copy_(self.W_enc_LD @ self.whitening.P_DD)
            self.whitening = None

    @torch.no_grad()
    def unfold(self) -> None:
        """To train what was saved further: the input scale back out of what `to_save` folded, so that what is in scaled
        units (a rate, JumpReLU's bandwidth) means what it did; nothing that is computed changes."""
        scale = self.provenance.get("input_scale", 1.0)
        self.scale /= scale
        self.fold()
        self.scale.fill_(scale)

    @torch.no_grad()
    def to_save(self) -> Self:
        """A copy with the input scale folded away; `input_scale` in its provenance is what it was."""
        folded = copy.deepcopy(self)
        folded.provenance = {"input_scale": self.scale.item(), **self.provenance}
        folded.fold()
        return folded

    def with_k(self, k: int) -> "Dictionary":
        return super().with_k(k) if self.whitening is None else self.to_save().with_k(k)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().weights().items() if name not in self.training_only}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.whitening = None  # it is folded in what is saved
        own = self.state_dict()
        super().load_weights({**weights, **{name: own[name] for name in self.training_only if name in own}})
