"""DictionaryTrainer: every dictionary of every site on one stream, as a Lightning module.

L latents.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from rayscope.console import say
from rayscope.dictionaries import Learned
from rayscope.dictionaries.learned.training_pass import TrainingPass
from rayscope.model.sites import Site
from rayscope.streams.stream import Batch
from rayscope.training.divergence import Divergence, NothingLeft, finite
from rayscope.training.log import Log, TrainingLog, log


class DictionaryTrainer(LightningModule):
    """Trains {site: {name: dictionary}} with one Adam optimiser and one parameter group per dictionary.

    Each group is clipped by its own gradient norm and nothing is drawn at random, so a dictionary trained alongside
    others is bitwise the same one trained alone. Each rate is warmed up over min(1000, 5%) steps and goes linearly to
    zero over the last 20%; the sum of each dictionary's losses is minimised. One that diverges is left out after that.

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
        for of_site in dictionaries.values():
            for name in of_site:
                if "." in name or "/" in name:
                    raise ValueError(
                        f"dictionaries: the name {name!r} holds a dot or a slash; use letters, digits and _"
                    )
        self.hooks = {site.key: site.hook for site in dictionaries}
        self.outputs = {site.key: site.output.key for site in dictionaries}
        self.dictionaries = nn.ModuleDict({site.key: nn.ModuleDict(of_site) for site, of_site in dictionaries.items()})
        self.steps, self.batch_size, self.clip, self.log_every = steps, batch_size, clip, log_every
        self.snapshot_steps = {step for step in snapshot_steps if step <= steps}
        self.snapshot_names, self.snapshot_folder = snapshot_names, snapshot_folder
        self.provenance = {site.key: about for site, about in (provenance or {}).items()}
        for _, _, dictionary in self.each():
            dictionary.train_for(steps)
        self.diverged: dict[tuple[str, str], Divergence] = {}
        self.passes: dict[tuple[str, str], TrainingPass] = {}  # of the current step
        self.metrics: dict[tuple[str, str], dict[str, Tensor]] = {}  # of the last step; NaN once diverged

    def each(self) -> Iterator[tuple[str, str, Learned]]:
        """(site key, name, dictionary)."""
        for key, of_site in self.dictionaries.items():
            for name, dictionary in of_site.items():  # type: ignore[union-attr]
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
            (key, name): dictionary.training_pass(
                batch.activations[key], batch.tokens_N, batch.activations[self.outputs[key]]
            )
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
            divergence = Divergence(self.hooks[key], name, step, step * self.batch_size, lr)
            self.diverged[key, name] = divergence
            dictionary, passed = self.dictionaries[key][name], self.passes.pop((key, name), None)  # type: ignore[index]
            last = self.metrics[key, name] if passed is None else dictionary.metrics(passed)
            self.metrics[key, name] = dict.fromkeys(last, torch.tensor(math.nan))
            say(f"diverged and left out: {divergence}")
        if all(each[:2] in self.diverged for each in self.each()):
            raise NothingLeft

    def check_weights(self, step: int) -> None:
        """For what the losses do not show: weights that no vector has used yet."""
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
            {"key": key, "divergence": asdict(divergence), "metrics": list(self.metrics[key, name])}
            for (key, name), divergence in self.diverged.items()
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for entry in checkpoint["diverged"]:
            divergence = Divergence(**entry["divergence"])
            self.diverged[entry["key"], divergence.name] = divergence
            self.metrics[entry["key"], divergence.name] = dict.fromkeys(entry["metrics"], torch.tensor(math.nan))

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
        """Logs and saves what is due after the step; called before its checkpoint, which keeps what this changes."""
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
        if step in self.snapshot_steps:
            self.save_snapshot(step)

    def save_snapshot(self, step: int) -> None:
        """The dictionaries as they are after the step; at 0, as they begin."""
        tokens = step * self.batch_size
        for key, name, dictionary in self.learning():
            if self.snapshot_folder and (self.snapshot_names is None or name in self.snapshot_names):
                about = {**self.provenance.get(key, {}), "tokens": tokens, "seed": dictionary.seed}
                dictionary.save(self.snapshot_folder / str(tokens) / key / name, about)

    def scalars(self) -> dict[str, float]:
        """NaN for dictionaries that have diverged."""
        return {
            f"train/{metric}/{self.hooks[key]}/{name}": float(value)
            for key, name, _ in self.each()
            for metric, value in self.metrics[key, name].items()
        }

    def histograms(self) -> dict[str, Tensor | None]:
        """Densities of the latents since they were last logged; None for dictionaries that have diverged."""
        return {
            f"train/density/{self.hooks[key]}/{name}": None if (key, name) in self.diverged else d.firing.take_density()
            for key, name, d in self.each()
        }
