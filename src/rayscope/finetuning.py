"""The last stage: trained dictionaries tuned for what the model says when it reads their reconstructions (2503.17272).

R rows, C context, N vectors, D site width.
"""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from rayscope.activations import Batch, permutation
from rayscope.console import progress, say
from rayscope.dictionaries import Learned
from rayscope.model import LanguageModel
from rayscope.sites import Site
from rayscope.splicing import Clean, coded_positions
from rayscope.text import Rows
from rayscope.training import CHECKPOINT, calibrate
from rayscope.training_log import TrainingLog, log


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


def kl_losses(clean: Clean, site: Site, dictionary: Learned, weight: float) -> dict[str, Tensor]:
    """The dictionary's own losses, and kl = weight * (R / K) K: K the mean KL(clean || spliced) of the predicted
    tokens, R the reconstruction loss, their ratio without gradient.

    So, whatever their units, KL counts `weight` times as much as reconstruction, in value (2503.17272). Position 0 and
    special tokens keep their own activations. `last` of the dictionary gets K as `kl`.
    """
    x_RCD, coded_RC = clean.activations[site.key], coded_positions(clean.tokens_RC, clean.model.special_ids)
    coded_RC[:, 0] = False
    told = dictionary.for_tokens(clean.tokens_RC[coded_RC])
    x_hat_ND, losses = told.reconstruct(x_RCD[coded_RC])
    x_hat_RCD = x_RCD.index_put((coded_RC,), x_hat_ND.to(x_RCD.dtype))
    kl = clean.splice(site, x_hat_RCD)[1].mean()
    ratio = losses["reconstruction"].detach() / kl.detach().clamp(min=torch.finfo(kl.dtype).tiny)
    dictionary.last["kl"] = kl.detach()
    return {**losses, "kl": weight * ratio * kl}


def finetune(
    model: LanguageModel,
    rows: LastRows,
    dictionaries: dict[Site, dict[str, Learned]],
    folder: Path,
    *,
    weight: float = 1.0,
    lr: float | None = None,
    clip: float = 1.0,
    calibration: Iterable[Batch] = (),
    loggers: Sequence[Logger] = (),
    log_every: int = 50,
    checkpoint_steps: int = 0,
    checkpoint_seconds: float = 120.0,
) -> None:
    """Tunes every dictionary in place on all rows, each spliced alone, from `folder/checkpoint.ckpt` where there is one.

    One clean pass in fp32 serves all of a batch; then, a dictionary at a time, a pass from its site's layer on with
    gradients through the frozen model. Adam, a group a dictionary, clipped by its own norm; the rate (lr, or each
    dictionary's own) is warmed up over 5% of the steps and goes linearly to zero. Nothing is drawn at random: resumed, it
    is bitwise the uninterrupted run on a CPU. At the end thresholds are set anew on `calibration`.
    """
    if not weight >= 0:
        raise ValueError(f"finetuning.kl={weight}: at least 0, the weight of KL beside reconstruction")
    if lr is not None and not lr > 0:
        raise ValueError(f"finetuning.lr={lr}: above 0, or null for each dictionary's own")
    every = [(site, name, d) for site, named in dictionaries.items() for name, d in named.items()]
    modules = nn.ModuleList([d for _, _, d in every]).train()
    free = [[p for p in d.parameters() if p.requires_grad] for _, _, d in every]
    rates = [lr or d.lr for _, _, d in every]
    groups = [{"params": parameters, "lr": rate} for parameters, rate in zip(free, rates, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.999), fused=True)
    checkpoint, training_log, done = folder / CHECKPOINT, TrainingLog(folder / "training.csv"), 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=model.device)
        modules.load_state_dict(state["dictionaries"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["steps"]
        say(f"fine-tuning: resuming at {done * rows.tokens_a_batch:,} of {len(rows) * rows.tokens_a_batch:,} tokens")
    training_log.keep(done * rows.tokens_a_batch)
    sites, warmup, saved = list(dictionaries), max(1, len(rows) // 20), time.monotonic()
    with progress("fine-tuning", len(rows) * rows.tokens_a_batch) as advance:
        advance(done * rows.tokens_a_batch)
        for step in range(done, len(rows)):
            clean = Clean.run(model, rows[step], sites)
            for (site, _, dictionary), parameters, group, rate in zip(
                every, free, optimizer.param_groups, rates, strict=True
            ):
                group["lr"] = rate * min((step + 1) / warmup, 1 - step / len(rows))
                torch.stack(list(kl_losses(clean, site, dictionary, weight).values())).sum().backward()
                dictionary.project_gradients()
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad()
            for _, _, dictionary in every:
                dictionary.after_step()
            steps = step + 1
            if steps % log_every == 0 or steps == len(rows):
                scalars = {f"train/{m}/{s.hook}/{n}": float(v) for s, n, d in every for m, v in d.last.items()}
                log([training_log, *loggers], steps * rows.tokens_a_batch, scalars, {})
            due = checkpoint_steps and steps % checkpoint_steps == 0
            if due or time.monotonic() - saved > checkpoint_seconds:
                save(
                    {"steps": steps, "dictionaries": modules.state_dict(), "optimizer": optimizer.state_dict()},
                    checkpoint,
                )
                saved = time.monotonic()
            advance(rows.tokens_a_batch)
    modules.eval()
    calibrate(calibration, dictionaries, model.device)


def save(state: dict, path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_name("." + path.name)
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
