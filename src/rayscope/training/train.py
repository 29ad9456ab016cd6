"""Training: the dictionaries of every site learn from one stream.

N vectors.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from rayscope.console import say
from rayscope.dictionaries import Learned
from rayscope.model.sites import Site
from rayscope.streams.stream import Batch, Stream
from rayscope.training.checkpoint import Checkpoint, digest, identity, named_by_content
from rayscope.training.divergence import Divergence, without
from rayscope.training.fitting import fit
from rayscope.training.log import Log, TrainingLog
from rayscope.training.trainer import DictionaryTrainer


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
    """Trains in place on the whole stream, from the checkpoint in the folder if there is one.

    about: each site's provenance (model, text), which snapshots record and a checkpoint must share.
    calibration: held-out batches on which thresholds are set at the end.
    snapshots: about how many times the dictionaries (those of `snapshot_names`, or all) are saved, at log-spaced steps,
    in `folder/snapshots/<tokens>/<site key>/<name>`; and once more before the first step, with 0 tokens.
    checkpoint_seconds: inf for checkpoints at `checkpoint_steps` and at a stop only.

    Returns the dictionaries that diverged; the others are bitwise what they would be without them. A stop signal (see
    `stopping`) ends the step, saves a checkpoint and raises Stopped.
    """
    check_schedule(log_every, checkpoint_steps, checkpoint_seconds, snapshots)
    steps, device = len(stream), stream.device
    folder.mkdir(parents=True, exist_ok=True)
    module = DictionaryTrainer(  # which sets the rates: they are part of what a checkpoint must share
        dictionaries,
        steps=steps,
        batch_size=stream.batch_size,
        log_every=log_every,
        snapshot_steps=log_spaced(steps, snapshots),
        snapshot_names=snapshot_names,
        snapshot_folder=folder / "snapshots",
        provenance=about,
    )
    checkpoint = Checkpoint(folder, run_of(stream, dictionaries, about or {}))
    if not checkpoint.exists():
        prepare(stream, dictionaries, steps * stream.batch_size)
        if snapshots:
            module.save_snapshot(0)
    say_rates(dictionaries)
    fit(
        module,
        stream,
        checkpoint,
        loggers=[TrainingLog(folder / "training.csv"), *loggers],
        checkpoint_steps=checkpoint_steps,
        checkpoint_seconds=checkpoint_seconds,
    )
    stream.load_state_dict({"next_batch": 0})  # Lightning asks for no batch after the last, at which a stream returns
    module.to(device)
    calibrate(calibration, without(dictionaries, module.diverged.values()), device)
    return list(module.diverged.values())


def say_rates(dictionaries: dict[Site, dict[str, Learned]]) -> None:
    names: dict[float, list[str]] = {}  # by rate
    for of_site in dictionaries.values():
        for name, dictionary in of_site.items():
            names.setdefault(dictionary.lr, []).append(name)
    rates = (f"lr {lr:.3g} ({', '.join(dict.fromkeys(named))})" for lr, named in names.items())
    say(f"training: {'; '.join(rates)}")


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
    """What a checkpoint must have been saved with. Names of models and texts may change, their contents may not."""
    names = {f"{name} at {site.hook}": d for site, of_site in dictionaries.items() for name, d in of_site.items()}
    inputs = {site.hook: named_by_content(provenance) for site, provenance in about.items()}
    sizes = {"tokens": len(stream) * stream.batch_size, "batch_size": stream.batch_size}
    return identity(
        names, stage="dictionaries", **sizes, first_batch=digest([stream.labels(0).tokens_N]), inputs=inputs
    )


@torch.no_grad()
def prepare(stream: Stream, dictionaries: dict[Site, dict[str, Learned]], tokens: int, sample: int = 8192) -> None:
    """Starts every dictionary from the first `sample` vectors of the stream."""
    batches = [stream[number] for number in range(min(len(stream), -(-sample // stream.batch_size)))]
    tokens_N = torch.cat([batch.tokens_N for batch in batches])
    window = max(1, min(10_000_000, tokens // 10))
    for site, of_site in dictionaries.items():
        x_ND = torch.cat([batch.activations[site.key] for batch in batches])
        target_ND = x_ND
        if site.output != site:
            target_ND = torch.cat([batch.activations[site.output.key] for batch in batches])
        for dictionary in of_site.values():
            dictionary.prepare(x_ND, window, tokens, tokens_N, target_ND)


@torch.no_grad()
def calibrate(batches: Iterable[Batch], dictionaries: dict[Site, dict[str, Learned]], device: torch.device) -> None:
    batches = list(batches)
    if not batches:
        return
    tokens_N = torch.cat([batch.tokens_N for batch in batches]).to(device)
    for site, of_site in dictionaries.items():
        x_ND = torch.cat([batch.activations[site.key] for batch in batches]).to(device)
        for dictionary in of_site.values():
            dictionary.calibrate(x_ND, tokens_N)


def log_spaced(steps: int, count: int) -> list[int]:
    """About `count` steps from 1 to `steps`, evenly spaced in their logarithm; steps that coincide count once."""
    if count < 1:
        return []
    if count == 1:
        return [steps]
    return sorted({round(steps ** (i / (count - 1))) for i in range(count)})
