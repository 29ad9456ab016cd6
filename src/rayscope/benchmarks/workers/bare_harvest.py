"""The blocks of Hugging Face's GPT-2 (sdpa) one after another, and nothing else: the limit of a harvest.

R rows, C context, D d_model.
"""

from typing import Any

import protocol
import torch
from transformers import GPT2LMHeadModel

from rayscope.memory import keep_freed_memory

settings = protocol.start()
keep_freed_memory()  # as ours does
network: Any = GPT2LMHeadModel.from_pretrained(settings.model, attn_implementation="sdpa", dtype=torch.float32).eval()
transformer = network.transformer
tokens_RC = torch.randint(settings.vocabulary, (settings.rows, settings.context))
positions_C = torch.arange(settings.context)
for _ in protocol.rounds():
    for part_RC in tokens_RC.split(16):
        with torch.no_grad(), protocol.autocast(settings):
            x_RCD = transformer.wte(part_RC) + transformer.wpe(positions_C)
            for block in transformer.h[: settings.layer]:
                out = block(x_RCD)
                x_RCD = out if isinstance(out, torch.Tensor) else out[0]
protocol.finish("transformers")
