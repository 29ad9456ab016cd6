"""The model with one site's activations replaced: loss and KL of every predicted token.

R rows, C context, D site width, V vocabulary. A row of C tokens has C - 1 predictions, made at positions 0 .. C - 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.model.language_model import LanguageModel
from rayscope.model.sites import Site

Codec = Callable[[Tensor], Tensor]  # x_RCD -> x_hat_RCD


@dataclass
class Clean:
    """A clean pass over some rows, in fp32: what spliced passes start from and are compared with.

    Every pass, the clean one too, runs the blocks from the first layer that holds a site by the same code, so that
    replacing an activation by itself changes no bit of the loss.
    """

    model: LanguageModel
    tokens_RC: Tensor
    residual: dict[int, Tensor]  # the residual stream before each layer that holds a site
    activations: dict[str, Tensor]
    logp_RCV: Tensor
    loss_RC: Tensor

    @classmethod
    @torch.no_grad()
    def run(cls, model: LanguageModel, tokens_RC: Tensor, sites: list[Site]) -> "Clean":
        tokens_RC = tokens_RC.to(model.device)
        residual: dict[int, Tensor] = {}
        found: dict[str, Tensor] = {}
        layers = {site.layer for site in sites}
        keys = {site.hook: site.key for site in sites}

        def read(hook: str, x: Tensor) -> None:
            layer = int(hook.split(".")[1])
            if layer in layers and hook.endswith("hook_resid_pre"):
                residual[layer] = x
            if hook in keys:
                found[keys[hook]] = x

        logits = model.unembed(model.run_blocks(model.embed(tokens_RC), read=read)[:, :-1])
        logp = logits.log_softmax(-1)
        return cls(model, tokens_RC, residual, found, logp, token_loss(logp, tokens_RC))

    @torch.no_grad()
    def spliced(self, site: Site, x_hat_RCD: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, KL(clean || spliced)) of every predicted token, both [R, C - 1], in nats."""
        return self.splice(site, x_hat_RCD)

    def splice(self, site: Site, x_hat_RCD: Tensor) -> tuple[Tensor, Tensor]:
        """The same, with gradients to x_hat."""
        end = self.model.run_blocks(self.residual[site.layer], first=site.layer, edit={site.hook: lambda x: x_hat_RCD})
        logp = self.model.unembed(end[:, :-1]).log_softmax(-1)
        divergence = F.kl_div(logp, self.logp_RCV, log_target=True, reduction="none").sum(-1)
        return token_loss(logp, self.tokens_RC), divergence


def token_loss(logp_RCV: Tensor, tokens_RC: Tensor) -> Tensor:
    """-log p(next token), [R, C - 1]."""
    return -logp_RCV.gather(-1, tokens_RC[:, 1:, None]).squeeze(-1)


def keep_first(x_RCD: Tensor, x_hat_RCD: Tensor) -> Tensor:
    """x_hat, but position 0 keeps its own activation."""
    return torch.cat([x_RCD[:, :1], x_hat_RCD[:, 1:]], dim=1)


def coded_positions(tokens_RC: Tensor, special: Sequence[int]) -> Tensor:
    """[R, C]: where a dictionary's codes are put in: everywhere but at special tokens, which no stream holds. Position 0,
    whatever its token, is a question of its own."""
    coded_RC = ~torch.isin(tokens_RC, torch.tensor(special, dtype=tokens_RC.dtype, device=tokens_RC.device))
    coded_RC[:, 0] = True
    return coded_RC
