"""TransformerLens's TransformerBridge, raw, with run_with_cache of one hook point.

As its documentation has it, the whole model runs. Where `stopped`, the pass ends before the layer, and the residual
stream before block l is read where block l - 1 leaves it: before block l it would cost that block too.

R rows, C context, D d_model.
"""

import warnings

warnings.filterwarnings("ignore")

import protocol
import torch
from transformer_lens.model_bridge import TransformerBridge

settings = protocol.start()
bridge = TransformerBridge.boot_transformers(settings.model, device="cpu")
bridge.eval()
bridge.requires_grad_(False)
hook = f"blocks.{settings.layer - 1}.hook_resid_post" if settings.stopped else f"blocks.{settings.layer}.hook_resid_pre"
stop = {"stop_at_layer": settings.layer} if settings.stopped else {}
tokens_RC = torch.randint(settings.vocabulary, (settings.rows, settings.context))
for _ in protocol.rounds():
    for part_RC in tokens_RC.split(16):
        with torch.no_grad(), protocol.autocast(settings):
            _, cache = bridge.run_with_cache(part_RC, names_filter=lambda name: name == hook, **stop)
            found_RCD = cache[hook]
protocol.finish("transformer-lens")
