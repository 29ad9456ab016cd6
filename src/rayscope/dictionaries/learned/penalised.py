"""What dictionaries with a sparsity penalty share: codes above a threshold, and a coefficient that is steered.

N vectors, C vectors of a chunk, L latents, M chosen (vector, latent) pairs.
"""

from typing import Any

import torch
from torch import Tensor

from rayscope.dictionaries.learned.base import Learned
from rayscope.dictionaries.learned.training_pass import TrainingPass
from rayscope.dictionaries.sparse.kernels import SparsePattern
from rayscope.dictionaries.sparse.selection import above, choose_above, threshold_for

RATE = 10.0  # of the controller's integral part, in units of lr
LEAST = -10.0  # of ln(coefficient / its first): practically no penalty, but not out of reach


class Penalised(Learned):
    """Minimises reconstruction + coefficient * a penalty on codes. Their number varies; k is the mean aimed at.

    coefficient None: steered. After each step, with u = ln(the batch's L0 / k), clipped to +-1, and m its mean over
    steps (decay .9), ln coefficient grows by m's change + 10 lr m: a proportional-integral controller at the pace at
    which Adam moves weights. A number: a fixed coefficient with linear warm-up over the first 5% of steps; L0 is then
    not controlled. A penalty can only lower L0: if k exceeds what reconstruction alone would use, the coefficient goes
    to nearly 0 and L0 stays below k. Either way thresholds start where the mean L0 of prepare's sample is k.
    """

    signed = False
    adaptive = True
    training_only = (*Learned.training_only, "seen", "run", "log_coefficient", "excess")
    first_coefficient = 0.1
    seen: Tensor
    run: Tensor
    log_coefficient: Tensor
    excess: Tensor

    def __init__(self, *args, coefficient: float | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if coefficient is not None and not coefficient >= 0:
            raise ValueError(f"coefficient={coefficient} must be at least 0 (null: steered to a mean L0 of k)")
        self.coefficient = coefficient
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # tokens
        self.register_buffer("run", torch.ones((), dtype=torch.int64))  # tokens
        self.register_buffer("log_coefficient", torch.zeros((), dtype=torch.float64))
        self.register_buffer("excess", torch.zeros((), dtype=torch.float64))

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "coefficient": self.coefficient}

    @property
    def steered(self) -> bool:
        return self.coefficient is None

    @property
    def progress(self) -> Tensor:
        """The fraction of the run that is done."""
        return (self.seen / self.run).clamp(max=1)

    @property
    def pressure(self) -> Tensor:
        """The coefficient now."""
        if self.coefficient is None:
            return self.log_coefficient.exp() * self.first_coefficient
        return self.coefficient * (20 * self.progress).clamp(max=1)

    def _start_at(self, threshold: Tensor) -> None:
        """Sets the parameters so that the codes are the pre above the threshold."""
        self.b_enc_L.copy_(-threshold)

    def _start(self, centred_ND: Tensor, tokens_N: Tensor | None, run_tokens: int) -> None:
        self.run.fill_(run_tokens)
        count = len(centred_ND) * self.k
        self._start_at(threshold_for(centred_ND, self.W_enc_LD, torch.zeros_like(self.b_enc_L), count))

    def choose(self, centred_ND: Tensor) -> SparsePattern:
        return choose_above(centred_ND, self.W_enc_LD, self.b_enc_L)

    def active_codes(self, products_CL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counts_C, places, values = above(products_CL, self.b_enc_L.detach(), 0.0)
        return counts_C, places % self.latents, values

    def to_save(self) -> Learned:
        """Its provenance keeps `log_coefficient`, from which a later stage goes on."""
        saved = super().to_save()
        if self.steered:
            saved.provenance["log_coefficient"] = self.log_coefficient.item()
        return saved

    @torch.no_grad()
    def unfold(self) -> None:
        super().unfold()
        self.seen.copy_(self.run)  # the warm-up is over
        self.log_coefficient.fill_(self.provenance.get("log_coefficient", 0.0))

    def training_pass(
        self, x_ND: Tensor, tokens_N: Tensor | None = None, target_ND: Tensor | None = None
    ) -> TrainingPass:
        passed = super().training_pass(x_ND, tokens_N, target_ND)
        passed.metrics["coefficient"] = self.pressure
        return passed

    @torch.no_grad()
    def after_step(self, passed: TrainingPass) -> None:
        super().after_step(passed)
        self.seen += passed.vectors
        if self.steered:
            before = self.excess.clone()
            self.excess.lerp_((passed.l0.double() / self.k).log().clamp(-1, 1), 0.1)
            self.log_coefficient += self.excess - before + RATE * self.lr * self.excess
            self.log_coefficient.clamp_(min=LEAST)
