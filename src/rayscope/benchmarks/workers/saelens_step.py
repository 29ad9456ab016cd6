"""SAELens: its own SAETrainer.fit(), which takes its batches from the race; `autocast` is its own option."""

import os
import warnings
from contextlib import suppress

os.environ.setdefault("WANDB_MODE", "disabled")
warnings.filterwarnings("ignore")

import protocol
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    LoggingConfig,
    SAETrainer,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig

KINDS = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}
settings = protocol.start()
train_ND, held_out_ND = protocol.vectors(settings)
kind, config = KINDS[settings.kind]
sae = kind(config(d_in=settings.width, d_sae=settings.latents, k=settings.k))
sae.train()
rate = settings.lr or 3e-4
trainer = SAETrainer(
    cfg=SAETrainerConfig(
        total_training_samples=settings.total_steps * settings.batch,
        train_batch_size_samples=settings.batch,
        lr=rate,
        lr_end=rate,
        lr_warm_up_steps=settings.total_steps // 20,
        lr_decay_steps=settings.total_steps // 5,
        device="cpu",
        autocast=settings.autocast,
        logger=LoggingConfig(log_to_wandb=False),
    ),
    sae=sae,
    data_provider=protocol.batches(train_ND, settings.batch, settings.seed),
)
with suppress(StopIteration):
    trainer.fit()
    next(trainer.data_provider)  # the last round ends here where fit() stopped by itself
sae.eval()
facts = {"fvu": protocol.fvu(sae, held_out_ND)} if settings.held_out else {}
protocol.finish("sae-lens", **facts)
