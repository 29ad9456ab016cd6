"""DictionaryTrainer: every dictionary of every site on one stream.

N vectors, D site width, L latents.
"""

import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from rayscope.activations import Batch, Stream
from rayscope.console import progress, say
from rayscope.dictionaries import Learned
from rayscope.sites import Site
from rayscope.training_log import TrainingLog, log

CHECKPOINT = "checkpoint.ckpt"


class DictionaryTrainer(LightningModule):
    """Trains {site: {name: dictionary}} with one Adam, a parameter group a dictionary.

    Each group is clipped by its own gradient norm and nothing is drawn at random, so a dictionary trained beside others
    equals, bitwise, the same one trained alone. The rate is warmed up over min(1000, 5%) steps and goes linearly to zero
    over the last 20%; the sum of each dictionary's named losses is what is minimised.
    """

    def __init__(
        self,
        dictionaries: dict[Site, dict[str, Learned]],
        *,
        steps: int,
        batch_size: int,
        clip: float = 1.0,
        log_every: int = 50,
        snapshot_steps: Sequence[int] = (),
        snapshot_names: Sequence[str] | None = None,
        snapshot_folder: Path | None = None,
    ):
        super().__init__()
        for named in dictionaries.values():
            for name in named:
                if "." in name or "/" in name:
                    raise ValueError(
                        f"dictionaries: the name {name!r} holds a dot or a slash; use letters, digits and _"
                    )
        self.hooks = {site.key: site.hook for site in dictionaries}
        self.dictionaries = nn.ModuleDict({site.key: nn.ModuleDict(named) for site, named in dictionaries.items()})
        self.steps, self.batch_size, self.clip, self.log_every = steps, batch_size, clip, log_every
        self.snapshot_steps = {step for step in snapshot_steps if step <= steps}
        self.snapshot_names, self.snapshot_folder = snapshot_names, snapshot_folder

    def each(self) -> Iterator[tuple[str, str, Learned]]:
        """(site key, name, dictionary)."""
        for key, named in self.dictionaries.items():
            for name, dictionary in named.items():  # type: ignore[union-attr]
                yield key, name, dictionary

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses: list[Tensor] = []
        for key, _, dictionary in self.each():
            losses += dictionary.for_tokens(batch.tokens_N).losses(batch.activations[key]).values()
        return torch.stack(losses).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for _, _, dictionary in self.each():
            dictionary.project_gradients()
            nn.utils.clip_grad_norm_((p for p in dictionary.parameters() if p.requires_grad), self.clip)

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        for _, _, dictionary in self.each():
            dictionary.after_step()

    def configure_optimizers(self):
        groups = [
            {"params": [p for p in dictionary.parameters() if p.requires_grad], "lr": dictionary.lr}
            for _, _, dictionary in self.each()
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999), fused=True)
        warmup, decay = min(1000, max(1, self.steps // 20)), max(1, self.steps // 5)

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / warmup, max(0, self.steps - step) / decay)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def record(self, step: int) -> None:
        """Logs and saves what is due after the step. Before the checkpoint of that step, which so holds what it changes."""
        if self.loggers and (step % self.log_every == 0 or step == self.steps):
            log(self.loggers, step * self.batch_size, self.scalars(), self.histograms())
        if step in self.snapshot_steps and self.snapshot_folder is not None:
            tokens = step * self.batch_size
            for key, name, dictionary in self.each():
                if self.snapshot_names is None or name in self.snapshot_names:
                    dictionary.save(self.snapshot_folder / str(tokens) / key / name, {"tokens": tokens})

    def scalars(self) -> dict[str, float]:
        return {
            f"train/{metric}/{self.hooks[key]}/{name}": float(value)
            for key, name, dictionary in self.each()
            for metric, value in dictionary.last.items()
        }

    def histograms(self) -> dict[str, Tensor]:
        """Densities of the latents since the last time they were asked for."""
        return {f"train/density/{self.hooks[key]}/{name}": d.take_density() for key, name, d in self.each()}


class Checkpoints(Callback):
    """After each step its records, then, where due, the checkpoint: one, replaced as a whole: after a kill at any moment the last complete one is there."""

    def __init__(self, path: Path, every_steps: int, every_seconds: float):
        self.path, self.every_steps, self.every_seconds = path, every_steps, every_seconds
        self.last = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
        assert isinstance(pl_module, DictionaryTrainer)
        pl_module.record(trainer.global_step)
        due = self.every_steps and trainer.global_step % self.every_steps == 0
        if due or time.monotonic() - self.last > self.every_seconds:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        temporary = self.path.with_name("." + self.path.name)
        try:
            trainer.save_checkpoint(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self.last = time.monotonic()


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


def train(
    stream: Stream,
    dictionaries: dict[Site, dict[str, Learned]],
    folder: Path,
    *,
    calibration: Iterable[Batch] = (),
    loggers: Sequence[Logger] = (),
    log_every: int = 50,
    checkpoint_steps: int = 0,
    checkpoint_seconds: float = 120.0,
    snapshots: int = 0,
    snapshot_names: Sequence[str] | None = None,
) -> None:
    """Trains on the whole stream, from `folder/checkpoint.ckpt` where there is one; the dictionaries are changed in place.

    calibration: held-out batches on which thresholds are set at the end.
    snapshots: about how many times the dictionaries (of the names given) are saved, at log-spaced steps, in
    `folder/snapshots/<tokens>/<site key>/<name>`.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    steps, device = len(stream), stream.device
    tokens = steps * stream.batch_size
    checkpoint = folder / CHECKPOINT
    resumed = checkpoint.is_file()
    if not resumed:
        prepare(stream, dictionaries, tokens)
    module = DictionaryTrainer(
        dictionaries,
        steps=steps,
        batch_size=stream.batch_size,
        log_every=log_every,
        snapshot_steps=log_spaced(steps, snapshots),
        snapshot_names=snapshot_names,
        snapshot_folder=folder / "snapshots",
    )
    training_log = TrainingLog(folder / "training.csv")
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        max_epochs=1,
        logger=[training_log, *loggers],
        callbacks=[Checkpoints(checkpoint, checkpoint_steps, checkpoint_seconds), Bar(tokens, stream.batch_size)],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    done = 0
    if resumed:
        done = (
            torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)["global_step"] * stream.batch_size
        )
        say(f"training: resuming at {done:,} of {tokens:,} tokens")
    training_log.keep(done)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance", FutureWarning)  # lightning 2.6's own, with torch 2.13
        warnings.filterwarnings("ignore", "`isinstance", DeprecationWarning)
        try:
            trainer.fit(module, stream, ckpt_path=checkpoint if resumed else None, weights_only=True)
        except SystemExit:  # what lightning makes of a KeyboardInterrupt
            raise KeyboardInterrupt from None
    module.to(device)
    calibrate(calibration, dictionaries, device)


@torch.no_grad()
def prepare(stream: Stream, dictionaries: dict[Site, dict[str, Learned]], tokens: int, sample: int = 8192) -> None:
    """Starts every dictionary from the same first vectors of the stream."""
    batches = [stream[number] for number in range(min(len(stream), -(-sample // stream.batch_size)))]
    tokens_N = torch.cat([batch.tokens_N for batch in batches])
    window = max(1, min(10_000_000, tokens // 10))
    for site, named in dictionaries.items():
        x_ND = torch.cat([batch.activations[site.key] for batch in batches])
        for dictionary in named.values():
            dictionary.for_tokens(tokens_N).prepare(x_ND, window, tokens)


@torch.no_grad()
def calibrate(batches: Iterable[Batch], dictionaries: dict[Site, dict[str, Learned]], device: torch.device) -> None:
    batches = list(batches)
    if not batches:
        return
    tokens_N = torch.cat([batch.tokens_N for batch in batches]).to(device)
    for site, named in dictionaries.items():
        x_ND = torch.cat([batch.activations[site.key] for batch in batches]).to(device)
        for dictionary in named.values():
            dictionary.for_tokens(tokens_N).calibrate(x_ND)


def log_spaced(steps: int, count: int) -> list[int]:
    """About `count` steps from 1 to `steps`, evenly spaced in their logarithm; those that coincide are one."""
    if count < 1:
        return []
    if count == 1:
        return [steps]
    return sorted({round(steps ** (i / (count - 1))) for i in range(count)})
