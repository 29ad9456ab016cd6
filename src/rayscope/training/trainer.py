"""DictionaryTrainer: every dictionary of every site on one stream.

N vectors, D site width, L latents.
"""

import logging
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from rayscope.console import progress, say
from rayscope.dictionaries import Learned
from rayscope.dictionaries.learned.training_pass import TrainingPass
from rayscope.model.sites import Site
from rayscope.stopping import Stopped, deferred
from rayscope.streams.stream import Batch, Stream
from rayscope.training.checkpoint import Checkpoint, digest, identity
from rayscope.training.divergence import Divergence, NothingLeft, finite
from rayscope.training.log import Log, TrainingLog, log


class DictionaryTrainer(LightningModule):
    """Trains {site: {name: dictionary}} with one Adam, a parameter group a dictionary.

    Each group is clipped by its own gradient norm and nothing is drawn at random, so a dictionary trained beside others
    equals, bitwise, the same one trained alone. The rate is warmed up over min(1000, 5%) steps and goes linearly to zero
    over the last 20%; the sum of each dictionary's named losses is what is minimised. One that diverges is left out from
    then on.

    provenance: of each site, for the snapshots.
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
        provenance: dict[Site, dict[str, Any]] | None = None,
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
        self.provenance = {site.key: about for site, about in (provenance or {}).items()}
        self.diverged: dict[tuple[str, str], Divergence] = {}
        self.passes: dict[tuple[str, str], TrainingPass] = {}  # of the step that is being made
        self.metrics: dict[tuple[str, str], dict[str, Tensor]] = {}  # of the last step; NaN once diverged

    def each(self) -> Iterator[tuple[str, str, Learned]]:
        """(site key, name, dictionary)."""
        for key, named in self.dictionaries.items():
            for name, dictionary in named.items():  # type: ignore[union-attr]
                yield key, name, dictionary

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def learning(self) -> Iterator[tuple[str, str, Learned]]:
        """`each` that has not diverged."""
        return (each for each in self.each() if each[:2] not in self.diverged)

    def on_train_start(self) -> None:
        """The log ends where the checkpoint does."""
        done = self.global_step * self.batch_size
        if done:
            say(f"training: resuming at {done:,} of {self.steps * self.batch_size:,} tokens")
        for logger in self.loggers:
            if isinstance(logger, TrainingLog):
                logger.keep(done)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.passes = {
            (key, name): dictionary.training_pass(batch.activations[key], batch.tokens_N)
            for key, name, dictionary in self.learning()
        }
        losses = {which: passed.loss for which, passed in self.passes.items()}
        sound = torch.stack(list(losses.values())).isfinite().tolist()
        self.leave_out(
            [which for which, is_finite in zip(losses, sound, strict=True) if not is_finite], self.global_step
        )
        return torch.stack([loss for which, loss in losses.items() if which not in self.diverged]).sum()

    def leave_out(self, which: list[tuple[str, str]], step: int) -> None:
        for key, name in which:
            lr = self.dictionaries[key][name].lr  # type: ignore[index]
            found = Divergence(self.hooks[key], name, step, step * self.batch_size, lr)
            self.diverged[key, name] = found
            dictionary, passed = self.dictionaries[key][name], self.passes.pop((key, name), None)  # type: ignore[index]
            last = self.metrics[key, name] if passed is None else dictionary.metrics(passed)
            self.metrics[key, name] = dict.fromkeys(last, torch.tensor(math.nan))
            say(f"diverged and left out: {found}")
        if all(each[:2] in self.diverged for each in self.each()):
            raise NothingLeft

    def check_weights(self, step: int) -> None:
        """Where the losses do not show it: weights that no vector has used yet."""
        self.leave_out([(key, name) for key, name, dictionary in self.learning() if not finite(dictionary)], step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for _, _, dictionary in self.learning():
            dictionary.project_gradients()
            nn.utils.clip_grad_norm_((p for p in dictionary.parameters() if p.requires_grad), self.clip)

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def after_step(self) -> None:
        for key, name, dictionary in self.learning():
            passed = self.passes.pop((key, name))
            dictionary.after_step(passed)
            self.metrics[key, name] = dictionary.metrics(passed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["diverged"] = [
            {"key": key, "divergence": asdict(found), "metrics": list(self.metrics[key, name])}
            for (key, name), found in self.diverged.items()
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for entry in checkpoint["diverged"]:
            found = Divergence(**entry["divergence"])
            self.diverged[entry["key"], found.name] = found
            self.metrics[entry["key"], found.name] = dict.fromkeys(entry["metrics"], torch.tensor(math.nan))

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
        logged = step == self.steps or (self.log_every and step % self.log_every == 0)
        if logged or step in self.snapshot_steps:
            self.check_weights(step)
        if self.loggers and logged:
            log(
                [each for each in self.loggers if isinstance(each, Log)],
                step * self.batch_size,
                self.scalars(),
                self.histograms(),
            )
        if step in self.snapshot_steps and self.snapshot_folder is not None:
            tokens = step * self.batch_size
            for key, name, dictionary in self.learning():
                if self.snapshot_names is None or name in self.snapshot_names:
                    about = {**self.provenance.get(key, {}), "tokens": tokens, "seed": dictionary.seed}
                    dictionary.save(self.snapshot_folder / str(tokens) / key / name, about)

    def scalars(self) -> dict[str, float]:
        """NaN for those that have diverged."""
        return {
            f"train/{metric}/{self.hooks[key]}/{name}": float(value)
            for key, name, _ in self.each()
            for metric, value in self.metrics[key, name].items()
        }

    def histograms(self) -> dict[str, Tensor | None]:
        """Densities of the latents since the last time they were asked for; None for those that have diverged."""
        return {
            f"train/density/{self.hooks[key]}/{name}": None if (key, name) in self.diverged else d.firing.take_density()
            for key, name, d in self.each()
        }


class Steps(Callback):
    """After each step its records; then, if it is due, the checkpoint. A stop signal ends the training there.

    So after a kill at any moment the last complete checkpoint is there, and after a stop that of the last step.
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
    """Lightning's Trainer takes what it is not given from PL_TRAINER_PRECISION and the like, by the name of its class."""


class RunsOwn(CheckpointIO):
    """Lightning saves and loads by `Checkpoint`."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.checkpoint.save(checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint.load()

    def remove_checkpoint(self, path: Any) -> None:
        raise NotImplementedError


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
    about: dict[Site, dict[str, Any]] | None = None,
    calibration: Iterable[Batch] = (),
    loggers: Sequence[Log] = (),
    log_every: int = 50,
    checkpoint_steps: int = 0,
    checkpoint_seconds: float = 120.0,
    snapshots: int = 0,
    snapshot_names: Sequence[str] | None = None,
) -> list[Divergence]:
    """Trains on the whole stream, from the checkpoint in the folder if there is one; the dictionaries are changed in place.

    about: each site's provenance (model, text), which the snapshots hold and a checkpoint must share.
    calibration: held-out batches on which thresholds are set at the end.
    snapshots: about how many times the dictionaries (of the names given) are saved, at log-spaced steps, in
    `folder/snapshots/<tokens>/<site key>/<name>`.
    checkpoint_seconds: inf for none but at `checkpoint_steps` and at a stop.

    Returns those that diverged; the others are, bitwise, what they are without them. A stop signal (see `stopping`) ends
    the step, saves a checkpoint and raises Stopped.
    """
    check_schedule(log_every, checkpoint_steps, checkpoint_seconds, snapshots)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    steps, device = len(stream), stream.device
    tokens = steps * stream.batch_size
    checkpoint = Checkpoint(folder, run_of(stream, dictionaries, about or {}))
    resumed = checkpoint.exists()
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
        provenance=about,
    )
    one_process = LightningEnvironment()  # whatever Slurm, torchrun and the like say of it
    one_process.set_global_rank(0)
    trainer = PlainTrainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        max_epochs=1,
        logger=[TrainingLog(folder / "training.csv"), *loggers],
        callbacks=[
            Steps(checkpoint, checkpoint_steps, checkpoint_seconds),
            Bar(tokens, stream.batch_size),
        ],
        plugins=[one_process, RunsOwn(checkpoint)],
        default_root_dir=folder / "lightning",  # never made: under Slurm lightning would read an hpc_ckpt_*.ckpt in it
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
            trainer.fit(module, stream, ckpt_path=checkpoint.path if resumed else None, weights_only=True)
        except NothingLeft:
            pass
        except SystemExit as exit:  # what lightning makes of a KeyboardInterrupt
            raise (exit.__context__ or KeyboardInterrupt()) from None
    module.to(device)
    calibrate(calibration, without(dictionaries, module.diverged.values()), device)
    return list(module.diverged.values())


def check_schedule(log_every: int, checkpoint_steps: int, checkpoint_seconds: float, snapshots: int = 0) -> None:
    """Raises ValueError with the option's name."""
    for name, value, least, meaning in (
        ("log_every", log_every, 0, "steps; 0: after the last alone"),
        ("checkpoint_steps", checkpoint_steps, 0, "steps; 0: by time alone"),
        ("snapshots", snapshots, 0, "snapshots"),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"training.{name}={value}: a whole number, at least {least} ({meaning})")
    if not checkpoint_seconds >= 0:
        raise ValueError(f"training.checkpoint_seconds={checkpoint_seconds}: at least 0 seconds")


def run_of(
    stream: Stream, dictionaries: dict[Site, dict[str, Learned]], about: dict[Site, dict[str, Any]]
) -> dict[str, Any]:
    """What a checkpoint must have been saved with; names of models and texts may change, what they hold may not."""
    names = {f"{name} at {site.hook}": d for site, named in dictionaries.items() for name, d in named.items()}
    inputs = {site.hook: named_by_content(found) for site, found in about.items()}
    sizes = {"tokens": len(stream) * stream.batch_size, "batch_size": stream.batch_size}
    return identity(
        names, stage="dictionaries", **sizes, first_batch=digest([stream.labels(0).tokens_N]), inputs=inputs
    )


def named_by_content(about: dict[str, Any]) -> dict[str, Any]:
    """The provenance without the names of what has a hash."""
    return {
        key: {k: v for k, v in value.items() if k != "name"} if isinstance(value, dict) and "sha256" in value else value
        for key, value in about.items()
    }


def without(
    dictionaries: dict[Site, dict[str, Learned]], diverged: Iterable[Divergence]
) -> dict[Site, dict[str, Learned]]:
    """The dictionaries that have not diverged."""
    lost = {(found.hook, found.name) for found in diverged}
    return {
        site: {name: d for name, d in named.items() if (site.hook, name) not in lost}
        for site, named in dictionaries.items()
    }


@torch.no_grad()
def prepare(stream: Stream, dictionaries: dict[Site, dict[str, Learned]], tokens: int, sample: int = 8192) -> None:
    """Starts every dictionary from the same first vectors of the stream."""
    batches = [stream[number] for number in range(min(len(stream), -(-sample // stream.batch_size)))]
    tokens_N = torch.cat([batch.tokens_N for batch in batches])
    window = max(1, min(10_000_000, tokens // 10))
    for site, named in dictionaries.items():
        x_ND = torch.cat([batch.activations[site.key] for batch in batches])
        for dictionary in named.values():
            dictionary.prepare(x_ND, window, tokens, tokens_N)


@torch.no_grad()
def calibrate(batches: Iterable[Batch], dictionaries: dict[Site, dict[str, Learned]], device: torch.device) -> None:
    batches = list(batches)
    if not batches:
        return
    tokens_N = torch.cat([batch.tokens_N for batch in batches]).to(device)
    for site, named in dictionaries.items():
        x_ND = torch.cat([batch.activations[site.key] for batch in batches]).to(device)
        for dictionary in named.values():
            dictionary.calibrate(x_ND, tokens_N)


def log_spaced(steps: int, count: int) -> list[int]:
    """About `count` steps from 1 to `steps`, evenly spaced in their logarithm; those that coincide are one."""
    if count < 1:
        return []
    if count == 1:
        return [steps]
    return sorted({round(steps ** (i / (count - 1))) for i in range(count)})
