"""EleutherAI's sparsify: the steps of its Trainer.fit on one device with its default loss,
Adam and schedule, in their order.

Its Trainer itself runs behind a language model alone.
"""

import os

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

import protocol
import torch
from sparsify.config import SparseCoderConfig
from sparsify.sparse_coder import SparseCoder
from transformers import get_linear_schedule_with_warmup

settings = protocol.start()
train_ND, held_out_ND = protocol.vectors(settings)
sae = SparseCoder(settings.width, SparseCoderConfig(num_latents=settings.latents, k=settings.k), dtype=torch.float32)
adam = torch.optim.Adam(sae.parameters(), lr=settings.lr or 2e-4 / (settings.latents / 2**14) ** 0.5)
schedule = get_linear_schedule_with_warmup(adam, min(1000, settings.total_steps // 10), settings.total_steps)
sae.b_dec.data = train_ND[: settings.batch].mean(0)
silent_L = torch.zeros(settings.latents, dtype=torch.long)
for x_BD in protocol.batches(train_ND, settings.batch, settings.seed):
    sae.set_decoder_norm_to_unit_norm()
    with protocol.autocast(settings):
        out = sae(x_BD, dead_mask=None)  # auxk_alpha is 0 by default
    (out.fvu + out.multi_topk_fvu / 8).backward()
    sae.remove_gradient_parallel_to_decoder_directions()
    adam.step()
    adam.zero_grad()
    schedule.step()
    silent_L += len(x_BD)
    silent_L[out.latent_indices.flatten()] = 0
sae.set_decoder_norm_to_unit_norm()


def reconstruct(x_BD: torch.Tensor) -> torch.Tensor:
    values, indices, _ = sae.encode(x_BD)
    return sae.decode(values, indices)


facts = {"fvu": protocol.fvu(reconstruct, held_out_ND)} if settings.held_out else {}
protocol.finish("eai-sparsify", **facts)
