"""rayscope's whole line as users run it: text rows -> harvest -> shuffle -> Lightning -> step of every dictionary."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import protocol

from rayscope import model as models
from rayscope.benchmarks.planted import random_rows
from rayscope.dictionaries import TopK
from rayscope.memory import keep_freed_memory
from rayscope.model.sites import resolve
from rayscope.streams.harvest import ActivationStream
from rayscope.streams.stream import Batch
from rayscope.training.train import train
from rayscope.training.trainer import DictionaryTrainer

NEVER = float("inf")  # seconds


class Raced(ActivationStream):
    """A batch a step of the race, for as long as it goes on."""

    def __iter__(self) -> Iterator[Batch]:
        spent.clear()  # what came before was setting up
        batches = super().__iter__()
        for _ in protocol.rounds():
            began = time.perf_counter()
            yield next(batches)
            spent["all"] += time.perf_counter() - began


def timed(function: Callable, name: str) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - began

    return call


spent: dict[str, float] = defaultdict(float)
settings = protocol.start()
keep_freed_memory()  # as the command line does
model = models.load(settings.model)
sites = resolve(settings.sites, model)
stream = Raced(
    model,
    random_rows(settings.rows, settings.context, settings.vocabulary, settings.seed),
    sites,
    tokens=settings.total_steps * settings.batch,
    batch_size=settings.batch,
    round_tokens=settings.round_tokens,
    precision=settings.precision,
)
dictionaries: dict = {
    site: {f"topk_k{k}": TopK(site.width, settings.latents, k, seed=settings.seed) for k in settings.ks}
    for site in sites
}
model.activations = timed(model.activations, "model")
DictionaryTrainer.optimizer_step = timed(DictionaryTrainer.optimizer_step, "step")
with tempfile.TemporaryDirectory() as folder:
    train(stream, dictionaries, Path(folder), checkpoint_seconds=NEVER)
protocol.finish("rayscope", outside=1 - (spent["model"] + spent["step"]) / spent["all"])
