"""dictionary_learning: its own trainers' `update(step, x)`, as its trainSAE calls them,
with the settings of its demo.
"""

import sys
from types import ModuleType
from typing import Any

import protocol
import torch

nnsight: Any = ModuleType("nnsight")  # only its buffer of activations, which is not used here, needs the real one
nnsight.LanguageModel = object
sys.modules["nnsight"] = nnsight

from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer

settings = protocol.start()
train_ND, held_out_ND = protocol.vectors(settings)
scale = train_ND.square().sum(1).mean().sqrt()  # inputs of unit mean squared norm, as its trainSAE makes them
train_ND = train_ND.div_(scale)
steps = settings.total_steps
trainer = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[settings.kind](
    steps=steps,
    activation_dim=settings.width,
    dict_size=settings.latents,
    k=settings.k,
    layer=0,
    lm_name="none",
    lr=settings.lr or 3e-4,
    seed=settings.seed,
    device="cpu",
    warmup_steps=min(1000, steps // 10),
    decay_start=int(steps * 0.8) if steps >= 10 else None,
    threshold_start_step=min(1000, steps // 2),
)
for step, x_BD in enumerate(protocol.batches(train_ND, settings.batch, settings.seed)):
    with protocol.autocast(settings):
        trainer.update(step, x_BD)
trainer.ae.eval()


def reconstruct(x_BD: torch.Tensor) -> torch.Tensor:
    return trainer.ae(x_BD / scale) * scale


facts = {"fvu": protocol.fvu(reconstruct, held_out_ND)} if settings.held_out else {}
protocol.finish("dictionary-learning", **facts)
