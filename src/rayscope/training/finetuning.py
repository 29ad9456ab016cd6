"""Fine-tunes trained dictionaries on the KL between the clean and the spliced model's predictions (2503.17272).

R rows, C context, N vectors, D site width.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayscope.console import progress, say
from rayscope.dictionaries import Learned
from rayscope.dictionaries.learned.training_pass import TrainingPass
from rayscope.model import LanguageModel
from rayscope.model.sites import Site, with_outputs
from rayscope.model.splicing import CleanPass
from rayscope.stopping import Stopped, deferred
from rayscope.streams.positions import in_stream
from rayscope.streams.stream import Batch
from rayscope.training.checkpoint import Checkpoint, digest, identity, named_by_content
from rayscope.training.divergence import Divergence, finite, without
from rayscope.training.last_rows import LastRows
from rayscope.training.log import Log, TrainingLog, log
from rayscope.training.train import calibrate, check_schedule


def finetune(
    model: LanguageModel,
    rows: LastRows,
    dictionaries: dict[Site, dict[str, Learned]],
    folder: Path,
    *,
    about: dict[Site, dict[str, Any]] | None = None,
    weight: float = 1.0,
    lr: float | None = None,
    clip: float = 1.0,
    calibration: Iterable[Batch] = (),
    loggers: Sequence[Log] = (),
    log_every: int = 50,
    checkpoint_steps: int = 0,
    checkpoint_seconds: float = 120.0,
) -> list[Divergence]:
    """Tunes dictionaries in place on all rows, each spliced alone, from the checkpoint in the folder if there is one.

    Per batch, one clean pass in fp32 serves all dictionaries; then each has a pass of its own, from its site's layer
    on, with gradients through the frozen model. One Adam optimiser, one parameter group per dictionary, each clipped by
    its own norm; the rate (lr, or each dictionary's own) is warmed up over 5% of the steps and goes linearly to zero.
    Nothing is drawn at random: a resumed run is bitwise the uninterrupted one on a CPU. At the end thresholds are set
    again on `calibration`.

    about: each site's provenance, which a checkpoint must share. Returns the dictionaries that diverged, which are left
    out from then on. A stop signal (see `stopping`) ends the step, saves a checkpoint and raises Stopped.
    """
    if not weight >= 0:
        raise ValueError(f"finetuning.kl={weight}: at least 0, the weight of KL next to reconstruction")
    if lr is not None and not lr > 0:
        raise ValueError(f"finetuning.lr={lr}: above 0, or null for each dictionary's own")
    check_schedule(log_every, checkpoint_steps, checkpoint_seconds)
    run, size, steps = run_of(rows, dictionaries, about or {}, weight, lr), rows.tokens_per_batch, len(rows)
    tuner = Tuner(model, dictionaries, steps=steps, tokens_per_batch=size, weight=weight, lr=lr, clip=clip)
    checkpoint, training_log = Checkpoint(folder, run), TrainingLog(folder / "training.csv")
    if checkpoint.exists():
        tuner.load_state_dict(checkpoint.load())
        say(f"fine-tuning: resuming at {tuner.done * size:,} of {steps * size:,} tokens")
    training_log.keep(tuner.done * size)
    saved = time.monotonic()
    with progress("fine-tuning", steps * size) as advance, deferred() as asked:
        advance(tuner.done * size)
        while tuner.done < steps and tuner.learning():
            tuner.step(rows[tuner.done])
            done = tuner.done
            if done == steps or (log_every and done % log_every == 0):
                tuner.check_weights()
                log([training_log, *loggers], done * size, tuner.scalars(), {})
            stop, due = asked.number, done == steps or (checkpoint_steps and done % checkpoint_steps == 0)
            if due or time.monotonic() - saved > checkpoint_seconds or stop is not None:
                checkpoint.save(tuner.state_dict())
                saved = time.monotonic()
            if stop is not None:
                where = f"{done * size:,} of {steps * size:,} tokens"
                raise Stopped(stop, f"fine-tuning stopped at {where}; the same command resumes there")
            advance(size)
    tuner.modules.eval()
    calibrate(calibration, without(dictionaries, tuner.diverged.values()), model.device)
    return list(tuner.diverged.values())


class Tuner:
    """Steps of all dictionaries; `done` of them are behind."""

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: dict[Site, dict[str, Learned]],
        *,
        steps: int,
        tokens_per_batch: int,
        weight: float,
        lr: float | None,
        clip: float,
    ):
        self.model, self.sites, self.weight, self.clip = model, list(dictionaries), weight, clip
        self.steps, self.tokens_per_batch, self.done = steps, tokens_per_batch, 0
        self.entries = [(site, name, d) for site, of_site in dictionaries.items() for name, d in of_site.items()]
        self.modules = nn.ModuleList([d for _, _, d in self.entries]).train()
        self.parameters = [[p for p in d.parameters() if p.requires_grad] for _, _, d in self.entries]
        self.rates = [lr or d.lr for _, _, d in self.entries]
        groups = [{"params": group, "lr": rate} for group, rate in zip(self.parameters, self.rates, strict=True)]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999), fused=True)
        self.diverged: dict[int, Divergence] = {}  # by place in `entries`, as the next two
        self.passes: dict[int, TrainingPass] = {}  # of the current step
        self.metrics: dict[int, dict[str, Tensor]] = {}  # of the last step; NaN once diverged

    def learning(self) -> list[int]:
        """The places of the dictionaries that have not diverged."""
        return [place for place in range(len(self.entries)) if place not in self.diverged]

    def step(self, tokens_RC: Tensor) -> None:
        clean = CleanPass.run(self.model, tokens_RC, with_outputs(self.sites))
        rate = min((self.done + 1) / max(1, self.steps // 20), 1 - self.done / self.steps)
        for place in self.learning():
            site, _, dictionary = self.entries[place]
            passed = kl_pass(clean, site, dictionary, self.weight)
            loss, self.passes[place] = passed.loss, passed
            if not loss.isfinite():
                self.leave_out(place)
                continue
            self.optimizer.param_groups[place]["lr"] = self.rates[place] * rate
            loss.backward()
            dictionary.project_gradients()
            nn.utils.clip_grad_norm_(self.parameters[place], self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for place in self.learning():
            dictionary, passed = self.entries[place][2], self.passes.pop(place)
            dictionary.after_step(passed)
            self.metrics[place] = dictionary.metrics(passed)
        self.done += 1

    def leave_out(self, place: int) -> None:
        site, name, dictionary = self.entries[place]
        passed = self.passes.pop(place, None)
        last = self.metrics[place] if passed is None else dictionary.metrics(passed)
        self.metrics[place] = dict.fromkeys(last, torch.tensor(math.nan))
        divergence = Divergence(site.hook, name, self.done, self.done * self.tokens_per_batch, self.rates[place])
        self.diverged[place] = divergence
        say(f"diverged and left out: {divergence}")

    def check_weights(self) -> None:
        for place in self.learning():
            if not finite(self.entries[place][2]):
                self.leave_out(place)

    def scalars(self) -> dict[str, float]:
        """NaN for dictionaries that have diverged."""
        return {
            f"train/{metric}/{site.hook}/{name}": float(value)
            for place, (site, name, _) in enumerate(self.entries)
            for metric, value in self.metrics[place].items()
        }

    def state_dict(self) -> dict[str, Any]:
        lost = [
            {"place": place, "divergence": asdict(divergence), "metrics": list(self.metrics[place])}
            for place, divergence in self.diverged.items()
        ]
        learned = {"dictionaries": self.modules.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {"steps": self.done, **learned, "diverged": lost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["steps"]
        self.modules.load_state_dict(state["dictionaries"])
        self.optimizer.load_state_dict(state["optimizer"])
        for entry in state["diverged"]:
            self.diverged[entry["place"]] = Divergence(**entry["divergence"])
            self.metrics[entry["place"]] = dict.fromkeys(entry["metrics"], torch.tensor(math.nan))


def kl_pass(clean: CleanPass, site: Site, dictionary: Learned, weight: float) -> TrainingPass:
    """The dictionary's own losses, and kl = weight * (R / K) K: K the mean KL(clean || spliced) of the predicted
    tokens, R the reconstruction loss, their ratio without gradient. The metric kl is K.

    So KL counts `weight` times as much as reconstruction, in value, whatever their units. Position 0 and special tokens
    keep their own activations.
    """
    x_RCD, target_RCD = clean.activations[site.key], clean.activations[site.output.key]
    coded_RC = in_stream(clean.tokens_RC, clean.model.special_ids)
    x_ND = x_RCD[coded_RC]
    target_ND = x_ND if target_RCD is x_RCD else target_RCD[coded_RC]
    passed, units = dictionary.training_pass(x_ND, clean.tokens_RC[coded_RC], target_ND), dictionary.units.outer
    x_hat_ND = units.invert(units(target_ND) - passed.residual_ND)
    x_hat_RCD = target_RCD.index_put((coded_RC,), x_hat_ND.to(target_RCD.dtype))
    kl = clean.splice(site.output, x_hat_RCD)[1].mean()
    ratio = passed.losses["reconstruction"].detach() / kl.detach().clamp(min=torch.finfo(kl.dtype).tiny)
    passed.losses["kl"], passed.metrics["kl"] = weight * ratio * kl, kl.detach()
    return passed


def run_of(
    rows: LastRows,
    dictionaries: dict[Site, dict[str, Learned]],
    about: dict[Site, dict[str, Any]],
    weight: float,
    lr: float | None,
) -> dict[str, Any]:
    """What a checkpoint must have been saved with, including the dictionaries that it began from."""
    names = {f"{name} at {site.hook}": d for site, of_site in dictionaries.items() for name, d in of_site.items()}
    return identity(
        names,
        stage="kl",
        tokens=len(rows) * rows.tokens_per_batch,
        rows=rows.rows_per_batch,
        kl=weight,
        lr=lr,
        first_batch=digest([rows[0]]),
        begun_from=digest([tensor for d in names.values() for tensor in d.state_dict().values()]),
        inputs={site.hook: named_by_content(provenance) for site, provenance in about.items()},
    )
