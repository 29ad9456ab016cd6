"""The model with one site's activations replaced: loss and KL of every predicted token.

R rows, C context, D site width, V vocabulary. A row of C tokens has C - 1 predictions, made at positions 0 .. C - 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.model.language_model import LanguageModel
from rayscope.model.sites import Site


@dataclass
class CleanPass:
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
    def run(cls, model: LanguageModel, tokens_RC: Tensor, sites: list[Site]) -> "CleanPass":
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
