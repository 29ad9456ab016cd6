"""TransformerLens's TransformerBridge, raw, with run_with_cache of one hook point; stop_at_layer where it takes one.

R rows, C context.
"""

import inspect
import warnings

warnings.filterwarnings("ignore")

import protocol
import torch
from transformer_lens.model_bridge import TransformerBridge

settings = protocol.start()
bridge = TransformerBridge.boot_transformers(settings.model, device="cpu")
bridge.eval()
bridge.requires_grad_(False)
hook = settings.sites[-1]
options = {"names_filter": lambda name: name == hook}
if {"stop_at_layer", "kwargs"} & set(inspect.signature(bridge.run_with_cache).parameters):
    options["stop_at_layer"] = settings.layer
tokens_RC = torch.randint(settings.vocabulary, (settings.rows, settings.context))
for _ in protocol.rounds():
    for part_RC in tokens_RC.split(16):
        with torch.no_grad(), protocol.autocast(settings):
            _, cache = bridge.run_with_cache(part_RC, **options)
            x = cache[hook]
protocol.finish("transformer-lens", stopped="stop_at_layer" in options)
