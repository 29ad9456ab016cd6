"""The last stage: trained dictionaries tuned for what the model says when it reads their reconstructions (2503.17272).

R rows, C context, N vectors, D site width.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayscope.console import progress, say
from rayscope.dictionaries import Learned
from rayscope.dictionaries.learned.training_pass import TrainingPass
from rayscope.model import LanguageModel
from rayscope.model.sites import Site
from rayscope.model.splicing import CleanPass
from rayscope.stopping import Stopped, deferred
from rayscope.streams.positions import in_stream
from rayscope.streams.seeding import permutation
from rayscope.streams.stream import Batch
from rayscope.text import Rows
from rayscope.training.checkpoint import Checkpoint, digest, identity
from rayscope.training.divergence import Divergence, finite
from rayscope.training.log import Log, TrainingLog, log
from rayscope.training.trainer import calibrate, check_schedule, named_by_content, without


class LastRows:
    """Batches of whole rows, a function of (seed, number): each pass of the training stream's order, from its end.

    So the first rows are those that training over less than one pass read last, or never.
    """

    def __init__(self, rows: Rows, *, tokens: int, rows_per_batch: int, seed: int = 0):
        context = rows.tokens.shape[1]
        if not 1 <= rows_per_batch <= len(rows):
            raise ValueError(f"finetuning.rows={rows_per_batch}: at least 1, at most the {len(rows)} rows of the text")
        if tokens < rows_per_batch * context:
            raise ValueError(
                f"finetuning.tokens={tokens} is less than one batch of {rows_per_batch} rows of {context}; raise it"
            )
        self.rows, self.rows_per_batch, self.seed = rows, rows_per_batch, seed
        self.tokens_a_batch = rows_per_batch * context
        self.length = tokens // self.tokens_a_batch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Tensor:
        places = np.arange(number * self.rows_per_batch, (number + 1) * self.rows_per_batch)
        passes, within = np.divmod(places, len(self.rows))
        orders = {p: permutation(len(self.rows), self.seed, "pass", p).numpy()[::-1] for p in np.unique(passes)}
        chosen = np.array([orders[p][w] for p, w in zip(passes, within, strict=True)])
        return torch.from_numpy(self.rows.tokens[chosen].astype(np.int64))


def kl_pass(clean: CleanPass, site: Site, dictionary: Learned, weight: float) -> TrainingPass:
    """The dictionary's own losses, and kl = weight * (R / K) K: K the mean KL(clean || spliced) of the predicted
    tokens, R the reconstruction loss, their ratio without gradient.

    So, whatever their units, KL counts `weight` times as much as reconstruction, in value (2503.17272). Position 0 and
    special tokens keep their own activations. The metric kl is K.
    """
    x_RCD, kept_RC = clean.activations[site.key], in_stream(clean.tokens_RC, clean.model.special_ids)
    x_hat_ND, passed = dictionary.reconstruct(x_RCD[kept_RC], clean.tokens_RC[kept_RC])
    x_hat_RCD = x_RCD.index_put((kept_RC,), x_hat_ND.to(x_RCD.dtype))
    kl = clean.splice(site, x_hat_RCD)[1].mean()
    ratio = passed.losses["reconstruction"].detach() / kl.detach().clamp(min=torch.finfo(kl.dtype).tiny)
    passed.losses["kl"], passed.metrics["kl"] = weight * ratio * kl, kl.detach()
    return passed


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
    """Tunes every dictionary in place on all rows, each spliced alone, from the checkpoint in the folder if there is one.

    One clean pass in fp32 serves all of a batch; then, a dictionary at a time, a pass from its site's layer on with
    gradients through the frozen model. Adam, a group a dictionary, clipped by its own norm; the rate (lr, or each
    dictionary's own) is warmed up over 5% of the steps and goes linearly to zero. Nothing is drawn at random: resumed, it
    is bitwise the uninterrupted run on a CPU. At the end thresholds are set anew on `calibration`.

    about: each site's provenance, which a checkpoint must share. Returns the dictionaries that diverged; they are left
    out from then on. A stop signal (see `stopping`) ends the step, saves a checkpoint and raises Stopped.
    """
    if not weight >= 0:
        raise ValueError(f"finetuning.kl={weight}: at least 0, the weight of KL beside reconstruction")
    if lr is not None and not lr > 0:
        raise ValueError(f"finetuning.lr={lr}: above 0, or null for each dictionary's own")
    check_schedule(log_every, checkpoint_steps, checkpoint_seconds)
    run, size, steps = run_of(rows, dictionaries, about or {}, weight, lr), rows.tokens_a_batch, len(rows)
    tuner = Tuner(model, dictionaries, steps=steps, tokens_a_batch=size, weight=weight, lr=lr, clip=clip)
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
    """Steps of every dictionary at once. `done` of them lie behind."""

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: dict[Site, dict[str, Learned]],
        *,
        steps: int,
        tokens_a_batch: int,
        weight: float,
        lr: float | None,
        clip: float,
    ):
        self.model, self.sites, self.weight, self.clip = model, list(dictionaries), weight, clip
        self.steps, self.tokens_a_batch, self.done = steps, tokens_a_batch, 0
        self.every = [(site, name, d) for site, named in dictionaries.items() for name, d in named.items()]
        self.modules = nn.ModuleList([d for _, _, d in self.every]).train()
        self.free = [[p for p in d.parameters() if p.requires_grad] for _, _, d in self.every]
        self.rates = [lr or d.lr for _, _, d in self.every]
        groups = [{"params": free, "lr": rate} for free, rate in zip(self.free, self.rates, strict=True)]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999), fused=True)
        self.diverged: dict[int, Divergence] = {}  # by place in `every`, as the next two
        self.passes: dict[int, TrainingPass] = {}  # of the step that is being made
        self.metrics: dict[int, dict[str, Tensor]] = {}  # of the last step; NaN once diverged

    def learning(self) -> list[int]:
        """The places of those that have not diverged."""
        return [place for place in range(len(self.every)) if place not in self.diverged]

    def step(self, tokens_RC: Tensor) -> None:
        clean = CleanPass.run(self.model, tokens_RC, self.sites)
        rate = min((self.done + 1) / max(1, self.steps // 20), 1 - self.done / self.steps)
        for place in self.learning():
            site, _, dictionary = self.every[place]
            passed = kl_pass(clean, site, dictionary, self.weight)
            loss, self.passes[place] = passed.loss, passed
            if not loss.isfinite():
                self.leave_out(place)
                continue
            self.optimizer.param_groups[place]["lr"] = self.rates[place] * rate
            loss.backward()
            dictionary.project_gradients()
            nn.utils.clip_grad_norm_(self.free[place], self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for place in self.learning():
            dictionary, passed = self.every[place][2], self.passes.pop(place)
            dictionary.after_step(passed)
            self.metrics[place] = dictionary.metrics(passed)
        self.done += 1

    def leave_out(self, place: int) -> None:
        site, name, dictionary = self.every[place]
        passed = self.passes.pop(place, None)
        last = self.metrics[place] if passed is None else dictionary.metrics(passed)
        self.metrics[place] = dict.fromkeys(last, torch.tensor(math.nan))
        found = Divergence(site.hook, name, self.done, self.done * self.tokens_a_batch, self.rates[place])
        self.diverged[place] = found
        say(f"diverged and left out: {found}")

    def check_weights(self) -> None:
        for place in self.learning():
            if not finite(self.every[place][2]):
                self.leave_out(place)

    def scalars(self) -> dict[str, float]:
        """NaN for those that have diverged."""
        return {
            f"train/{metric}/{site.hook}/{name}": float(value)
            for place, (site, name, _) in enumerate(self.every)
            for metric, value in self.metrics[place].items()
        }

    def state_dict(self) -> dict[str, Any]:
        lost = [
            {"place": place, "divergence": asdict(found), "metrics": list(self.metrics[place])}
            for place, found in self.diverged.items()
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


def run_of(
    rows: LastRows,
    dictionaries: dict[Site, dict[str, Learned]],
    about: dict[Site, dict[str, Any]],
    weight: float,
    lr: float | None,
) -> dict[str, Any]:
    """What a checkpoint must have been saved with: the dictionaries that it began from too."""
    names = {f"{name} at {site.hook}": d for site, named in dictionaries.items() for name, d in named.items()}
    return identity(
        names,
        stage="kl",
        tokens=len(rows) * rows.tokens_a_batch,
        rows=rows.rows_per_batch,
        kl=weight,
        lr=lr,
        first_batch=digest([rows[0]]),
        begun_from=digest([tensor for d in names.values() for tensor in d.state_dict().values()]),
        inputs={site.hook: named_by_content(found) for site, found in about.items()},
    )
