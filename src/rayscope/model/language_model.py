"""A frozen GPT-2, run from any block to any site, with activations read and replaced on the way.

R rows, C context (positions), D d_model, V vocabulary.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rayscope.model.bfloat16 import attention, gelu
from rayscope.model.pretrained import read
from rayscope.model.sites import Site

Edit = Callable[[Tensor], Tensor]

ARCHITECTURE = (  # the part of a model's configuration that changes activations, besides the shapes of its weights
    "n_head",
    "activation_function",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
)


class Stop(Exception):
    pass


@dataclass
class LanguageModel:
    """GPT-2 with raw weights (nothing folded or centred): its activations are TransformerLens's `TransformerBridge`'s.

    The blocks are run here, not by hooks on the modules: a pass can start at any block, end at the last site needed,
    and replace any site as a whole. (In transformer-lens 4.3, a bridge's `hook_resid_mid` reaches the MLP but not the
    skip connection.)
    """

    name: str
    network: Any  # transformers.GPT2LMHeadModel
    tokenizer: Any
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def layers(self) -> int:
        return self.network.config.n_layer

    @property
    def d_model(self) -> int:
        return self.network.config.n_embd

    @property
    def d_mlp(self) -> int:
        return self.network.config.n_inner or 4 * self.d_model

    @property
    def vocabulary(self) -> int:
        return self.network.config.vocab_size

    @property
    def context(self) -> int:
        return self.network.config.n_positions

    @property
    def special_ids(self) -> tuple[int, ...]:
        return tuple(self.tokenizer.all_special_ids)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def architecture(self) -> dict[str, Any]:
        return {name: getattr(self.network.config, name, None) for name in ARCHITECTURE}

    def provenance(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.fingerprint, "weights": "raw", "architecture": self.architecture}

    def embed(self, tokens_RC: Tensor) -> Tensor:
        transformer = self.network.transformer
        positions = torch.arange(tokens_RC.shape[1], device=tokens_RC.device)
        return transformer.wte(tokens_RC) + transformer.wpe(positions)

    def run_blocks(
        self,
        residual_RCD: Tensor,
        first: int = 0,
        read: Callable[[str, Tensor], None] = lambda hook, x: None,
        edit: dict[str, Edit] | None = None,
    ) -> Tensor:
        """The residual stream after the final block, from the one before block `first`.

        read(hook, x): called with every site's activation, after its edit; it may raise Stop.
        edit: {hook: f}, the activation x at the hook becomes f(x) for all that comes after.
        """
        edit = edit or {}

        def site(layer: int, kind: str, x: Tensor) -> Tensor:
            hook = f"blocks.{layer}.{kind}"
            x = edit[hook](x) if hook in edit else x
            read(hook, x)
            return x

        x = residual_RCD
        for layer, block in list(enumerate(self.network.transformer.h))[first:]:
            x = site(layer, "hook_resid_pre", x)
            x = x + site(layer, "hook_attn_out", attention(block.attn, block.ln_1(x)))
            x = site(layer, "hook_resid_mid", x)
            post = site(layer, "mlp.hook_post", gelu(block.mlp.act, block.mlp.c_fc(block.ln_2(x))))
            x = x + site(layer, "hook_mlp_out", block.mlp.c_proj(post))
            x = site(layer, "hook_resid_post", x)
        return x

    def unembed(self, residual_RCD: Tensor) -> Tensor:
        return self.network.lm_head(self.network.transformer.ln_f(residual_RCD))

    @torch.no_grad()
    def activations(self, tokens_RC: Tensor, sites: Iterable[Site]) -> dict[str, Tensor]:
        """{site.key: x_RCD} at every site, in one pass that ends at the last one."""
        wanted = {site.hook: site.key for site in sites}
        found: dict[str, Tensor] = {}

        def read(hook: str, x: Tensor) -> None:
            if hook in wanted:
                found[wanted[hook]] = x
                if len(found) == len(wanted):
                    raise Stop

        with suppress(Stop):
            self.run_blocks(self.embed(tokens_RC.to(self.device)), read=read)
        return found

    def bridge(self):
        """The same weights as a TransformerLens `TransformerBridge`, for going on with hooks of your own."""
        from transformer_lens.model_bridge import TransformerBridge

        network = copy.deepcopy(self.network)
        return TransformerBridge.boot_transformers(self.name, hf_model=network, tokenizer=self.tokenizer)


def load(name: str, device: str = "cpu", revision: str | None = None, context: int | None = None) -> LanguageModel:
    """A GPT-2 by name: `tiny` (the one that ships), a local Hugging Face folder, or a model of the hub.

    context: use only the first positions of the model's context.
    Raises ValueError for a name that leads to no whole GPT-2 (see `pretrained.read`),
    and a context that it does not have.
    """
    whole = isinstance(context, int) and not isinstance(context, bool)
    if context is not None and not (whole and context >= 2):
        raise ValueError(f"model.context={context}: a whole number, at least 2, or null for the model's own")
    network, tokenizer = read(name, revision)
    if context and context > network.config.n_positions:
        raise ValueError(f"model.context={context}: {name} has a context of {network.config.n_positions}")
    if context:
        network.config.n_positions = context
    network.eval().requires_grad_(False).to(device)
    return LanguageModel(name, network, tokenizer, torch.device(device))
