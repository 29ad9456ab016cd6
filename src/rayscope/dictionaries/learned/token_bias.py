"""TokenBiasTopK: TopK rays of what remains after a lookup of the current token.

N vectors, D site width, V tokens of the vocabulary, U different tokens of a batch.
"""

from typing import Any

import torch
from torch import Tensor

from rayscope.dictionaries.learned.autoencoders import TopK
from rayscope.dictionaries.learned.training_pass import TrainingPass
from rayscope.dictionaries.learned.units import Units
from rayscope.dictionaries.sparse.kernels import SparsePattern


class TokenBiasTopK(TopK):
    """s x_hat = z W_dec + b_dec + B[token], z = TopK of pre = W_enc (s x - B[token] - b_dec) + b_enc.

    `bias` is decode(0) at a token never seen, whose B is 0.

    B is no parameter but a running mean, per token, of s x - z W_dec - b_dec, which minimises the loss in B given z (z
    is 0 in the sample before training). A step with m vectors of a token adds the sum of their residuals / (n + prior);
    n counts the token's vectors so far, at most max(memory, m), so that early residuals are forgotten. prior, in
    vectors, shrinks the B of rare tokens to 0. Only rows of a batch's tokens are touched.
    """

    kind = "token_bias_topk"
    side = "current token"
    from_model = ("width", "vocabulary")
    training_only = (*TopK.training_only, "seen_V")
    memory = 1000
    B_VD: Tensor
    seen_V: Tensor

    def __init__(self, width: int, latents: int, k: int, vocabulary: int, prior: float = 1.0, **kwargs):
        super().__init__(width, latents, k, **kwargs)
        if vocabulary < 1:
            raise ValueError(f"vocabulary={vocabulary} must be at least 1: the number of the model's tokens")
        if not prior >= 0:
            raise ValueError(f"prior={prior} vectors must be at least 0")
        self.vocabulary, self.prior = vocabulary, prior
        self.register_buffer("B_VD", torch.zeros(vocabulary, width))
        self.register_buffer("seen_V", torch.zeros(vocabulary, dtype=torch.int64))

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "vocabulary": self.vocabulary, "prior": self.prior}

    def bias_at(self, tokens_N: Tensor | None = None) -> Tensor:
        return self.units.outer.invert(self.b_dec_D + self._of_tokens(tokens_N))

    def _of_tokens(self, tokens_N: Tensor | None) -> Tensor:
        """(N, D): B of each vector's token."""
        if tokens_N is None:
            raise ValueError(f"a {self.kind} dictionary reads the current token: give tokens_N, one id per vector")
        if len(tokens_N) and not 0 <= int(tokens_N.min()) <= int(tokens_N.max()) < self.vocabulary:
            span = f"{int(tokens_N.min())} to {int(tokens_N.max())}"
            raise ValueError(
                f"tokens {span} are not all below vocabulary={self.vocabulary}, the model's number of tokens"
            )
        return self.B_VD[tokens_N.to(self.B_VD.device)]

    def _start(self, centred_ND: Tensor, tokens_N: Tensor | None, run_tokens: int) -> None:
        self._update_token_means(centred_ND, tokens_N)

    def _unknown(self, x_ND: Tensor, tokens_N: Tensor | None) -> Tensor:
        B_ND = self._of_tokens(tokens_N)
        if len(B_ND) != len(x_ND):
            raise ValueError(f"{len(x_ND)} vectors for {len(B_ND)} tokens; give one token per vector")
        return x_ND - B_ND

    @torch.no_grad()
    def after_step(self, passed: TrainingPass) -> None:
        super().after_step(passed)
        self._update_token_means(passed.residual_ND, passed.tokens_N)

    @torch.no_grad()
    def unfold(self) -> None:
        """A file does not say how often a token was seen: B counts as the mean of `memory` vectors."""
        super().unfold()
        self.seen_V.copy_(self.memory * self.B_VD.any(dim=1))

    def _update_token_means(self, residual_ND: Tensor, tokens_N: Tensor | None) -> None:
        assert tokens_N is not None  # `_of_tokens` has looked
        tokens_U, place_N, m_U = tokens_N.to(self.B_VD.device).unique(return_inverse=True, return_counts=True)
        by_token = SparsePattern(place_N, torch.arange(len(place_N) + 1, device=place_N.device), len(tokens_U))
        sums_UD = by_token.sum_by_latent(torch.ones_like(residual_ND[:, 0]), residual_ND)
        self.seen_V[tokens_U] += m_U
        n_U = torch.minimum(self.seen_V[tokens_U], m_U.clamp_min(self.memory))
        self.B_VD[tokens_U] += sums_UD / (n_U + self.prior)[:, None]

    def fold_output(self, units: Units) -> None:
        super().fold_output(units)
        self.B_VD.copy_(units.unwhiten(self.B_VD) / units.scale)
