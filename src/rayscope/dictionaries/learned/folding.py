"""Between training and a file: a learned dictionary's units are folded into its weights when it is saved, and back."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from rayscope.dictionaries.base import Dictionary
from rayscope.dictionaries.learned.rows import check_caps
from rayscope.dictionaries.learned.units import Sides, Units


class Folding(Dictionary):
    """What is in units of s x (or of its whitening) while it trains, and in units of x in a file."""

    training_only: tuple[str, ...]  # of a checkpoint, not of a file
    min_cosine: float
    units: Sides
    W_enc_LD: nn.Parameter
    W_dec_LD: nn.Parameter
    b_enc_L: nn.Parameter
    b_dec_D: nn.Parameter
    initial_LD: Tensor | None
    gain_L: Tensor | None

    @torch.no_grad()
    def fold(self) -> None:
        """Folds scales and whitening into the weights, in place: no result changes."""
        self.fold_input(self.units.inner)
        self.fold_output(self.units.outer)
        if self.gain_L is not None:
            self.gain_L *= self.units.inner.scale / self.units.outer.scale
        for units in self.units.each().values():
            units.reset()

    def fold_input(self, units: Units) -> None:
        """Folds the input's into W_enc and what is in units of pre."""
        self.b_enc_L.div_(units.scale)
        if units.whitening is not None:
            self.W_enc_LD.copy_(self.W_enc_LD @ units.whitening.P_DD)

    def fold_output(self, units: Units) -> None:
        """Folds the output's into W_dec, whose rows' lengths go to gain_L, and what is added to x_hat."""
        self.b_dec_D.copy_(units.invert(self.b_dec_D))
        if units.whitening is not None and self.gain_L is not None:
            self.gain_L *= units.unwhiten(self.W_dec_LD).norm(dim=1)
            self.W_dec_LD.copy_(self.directions)

    @torch.no_grad()
    def unfold(self) -> None:
        """Undoes `to_save`'s folding of the scales, so that training can go on.

        Raises ValueError for soft-frozen rows outside their caps.
        """
        if self.initial_LD is not None:
            check_caps(self.W_dec_LD, self.initial_LD, self.min_cosine)
        scales = {units: self.provenance.get(f"{side}_scale", 1.0) for side, units in self.units.each().items()}
        for units, scale in scales.items():
            units.scale /= scale
        self.fold()
        for units, scale in scales.items():
            units.scale.fill_(scale)

    @torch.no_grad()
    def to_save(self) -> Self:
        """A copy with its scales folded into the weights; its provenance keeps them (`input_scale`), for `unfold`."""
        folded = copy.deepcopy(self)
        scales = {f"{side}_scale": units.scale.item() for side, units in self.units.each().items()}
        folded.provenance = {**scales, **self.provenance}
        folded.fold()
        return folded

    def with_k(self, k: int) -> Dictionary:
        return super().with_k(k) if self.units.outer.whitening is None else self.to_save().with_k(k)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().weights().items() if name not in self.training_only}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        for units in self.units.each().values():
            units.reset()  # they are folded in what is saved
        own = self.state_dict()
        super().load_weights({**weights, **{name: own[name] for name in self.training_only if name in own}})
