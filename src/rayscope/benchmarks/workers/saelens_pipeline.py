"""SAELens's LanguageModelSAETrainingRunner on a GPT-2 of the same shape with random weights;
`autocast` and `autocast_lm` are its own.
"""

import os
import warnings
from contextlib import suppress

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("WANDB_MODE", "disabled")
warnings.filterwarnings("ignore")

import protocol
import torch
from datasets import Dataset
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETrainer,
    TopKTrainingSAEConfig,
)
from transformer_lens import HookedTransformer, HookedTransformerConfig

settings = protocol.start()
shape = settings.shape
model = HookedTransformer(
    HookedTransformerConfig(
        n_layers=shape["n_layer"],
        d_model=shape["n_embd"],
        n_ctx=settings.context,
        d_head=shape["n_embd"] // shape["n_head"],
        n_heads=shape["n_head"],
        d_vocab=settings.vocabulary,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
        seed=settings.seed,
    )
).eval()
tokens_RC = torch.randint(settings.vocabulary, (settings.rows, settings.context))
runner = LanguageModelSAETrainingRunner(
    LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(k=settings.ks[0], d_in=shape["n_embd"], d_sae=settings.latents),
        model_name="random",
        hook_name=settings.sites[-1],
        dataset_path="in-memory",
        context_size=settings.context,
        training_tokens=settings.total_steps * settings.batch,
        train_batch_size_tokens=settings.batch,
        n_batches_in_buffer=2 * -(-settings.batch // settings.context),  # contexts: its default is less than a batch
        store_batch_size_prompts=16,
        prepend_bos=False,
        device="cpu",
        verbose=False,
        autocast=settings.autocast,
        autocast_lm=settings.autocast,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
    ),
    override_dataset=Dataset.from_dict({"tokens": tokens_RC.tolist()}),
    override_model=model,
)
race = protocol.rounds()
train_step = SAETrainer._train_step


def raced(self, *args, **kwargs):
    next(race)  # a step of the race: its training step, its records, and the fetching of the next batch
    return train_step(self, *args, **kwargs)


SAETrainer._train_step = raced
with suppress(StopIteration):
    runner.run()
protocol.finish("sae-lens")
