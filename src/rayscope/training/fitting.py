"""Lightning's loop over a stream, with our checkpoints and progress bar instead of its own."""

import logging
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from rayscope.console import progress
from rayscope.stopping import Stopped, deferred
from rayscope.streams.stream import Stream
from rayscope.training.checkpoint import Checkpoint
from rayscope.training.divergence import NothingLeft
from rayscope.training.log import Log
from rayscope.training.trainer import DictionaryTrainer


def fit(
    module: DictionaryTrainer,
    stream: Stream,
    checkpoint: Checkpoint,
    *,
    loggers: Sequence[Log],
    checkpoint_steps: int,
    checkpoint_seconds: float,
) -> None:
    """From the checkpoint, if there is one, to the end of the stream, or until every dictionary has diverged."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    device = stream.device
    one_process = LightningEnvironment()  # whatever Slurm, torchrun and the like say of it
    one_process.set_global_rank(0)
    trainer = PlainTrainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        max_epochs=1,
        logger=list(loggers),
        callbacks=[
            Steps(checkpoint, checkpoint_steps, checkpoint_seconds),
            Bar(len(stream) * stream.batch_size, stream.batch_size),
        ],
        plugins=[one_process, OwnCheckpoints(checkpoint)],
        # never made; Lightning would read Slurm's hpc_ckpt_*.ckpt in it
        default_root_dir=checkpoint.path.parent / "lightning",
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance", FutureWarning)  # lightning 2.6's own, with torch 2.13
        warnings.filterwarnings("ignore", "`isinstance", DeprecationWarning)
        try:
            resume = checkpoint.path if checkpoint.exists() else None
            trainer.fit(module, stream, ckpt_path=resume, weights_only=True)
        except NothingLeft:
            pass
        except SystemExit as exit:  # what lightning makes of a KeyboardInterrupt
            raise (exit.__context__ or KeyboardInterrupt()) from None


class Steps(Callback):
    """Logs after every step and, when due, replaces the checkpoint, so a killed run always leaves a complete one.

    A stop signal ends the training after the step, with a checkpoint of it.
    """

    def __init__(self, checkpoint: Checkpoint, every_steps: int, every_seconds: float):
        self.checkpoint, self.every_steps, self.every_seconds = checkpoint, every_steps, every_seconds
        self.last = time.monotonic()
        self.signals = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.asked = self.signals.enter_context(deferred())  # after lightning's own handlers, which it replaces

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        assert isinstance(pl_module, DictionaryTrainer)
        step, steps = trainer.global_step, pl_module.steps
        pl_module.record(step)
        stop, now = self.asked.number, time.monotonic()
        due = step == steps and self.every_seconds < math.inf  # so that a full disk costs only the saving that follows
        due = due or (self.every_steps and step % self.every_steps == 0) or now - self.last > self.every_seconds
        if due or stop is not None:
            trainer.save_checkpoint(self.checkpoint.path)
            self.last = time.monotonic()
        if stop is not None:
            done, tokens = step * pl_module.batch_size, steps * pl_module.batch_size
            raise Stopped(stop, f"training stopped at {done:,} of {tokens:,} tokens; the same command resumes there")

    def on_exception(self, *_) -> None:
        self.signals.close()

    def on_train_end(self, *_) -> None:
        self.signals.close()


class PlainTrainer(Trainer):
    """Lightning's own Trainer takes options from the environment (PL_TRAINER_PRECISION), by the name of its class."""


class OwnCheckpoints(CheckpointIO):
    """Lightning saves and loads by `Checkpoint`."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.checkpoint.save(checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint.load()

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Bar(Callback):
    """tokens/s and time left."""

    def __init__(self, tokens: int, batch_size: int):
        self.bar, self.batch_size = progress("training", tokens), batch_size

    def on_train_start(self, trainer: Trainer, *_) -> None:
        self.advance = self.bar.__enter__()
        self.advance(trainer.global_step * self.batch_size)

    def on_train_batch_end(self, *_) -> None:
        self.advance(self.batch_size)

    def on_exception(self, *_) -> None:
        self.teardown()  # lightning calls that after a success alone, and an open bar hides the cursor

    def teardown(self, *_, **__) -> None:
        if hasattr(self, "advance"):
            self.bar.__exit__(None, None, None)
            del self.advance
