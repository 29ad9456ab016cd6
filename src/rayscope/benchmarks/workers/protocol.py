"""What every worker speaks. It is started with its settings as JSON, and sets itself up; then one line of JSON each:

    worker  {"ready": true}
    race    {"steps": n}                                         one line per round
    worker  {"seconds": [one a step], "cpu_seconds": of the round}
    race    (end of input)
    worker  {"peak_mb": ..., ...}                                and exits

Imported first, and by path: what libraries print from then on goes to stderr, for stdout is the race's. It needs torch
alone, so that it runs in any peer's environment.

N vectors, B vectors of a batch, D site width.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

_race = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def start() -> SimpleNamespace:
    """The settings, with threads and seed set."""
    settings = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    return settings


def tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), file=_race, flush=True)


def rounds() -> Iterator[int]:
    """Yields once a step: a step is what its consumer does until it asks for the next. Ends with the race."""
    tell({"ready": True})
    step = 0
    for line in sys.stdin:
        seconds, cpu = [], time.process_time()
        for _ in range(json.loads(line)["steps"]):
            began = time.perf_counter()
            yield step
            seconds.append(time.perf_counter() - began)
            step += 1
        tell({"seconds": seconds, "cpu_seconds": time.process_time() - cpu})


def vectors(settings: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """(training, held out): the file's last `held_out` vectors are the second."""
    x_ND = torch.load(settings.data, weights_only=True)
    return x_ND[: len(x_ND) - settings.held_out], x_ND[len(x_ND) - settings.held_out :]


def batches(x_ND: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """One batch a step, from shuffled passes without replacement:
    the same rows in the same order for every contender.
    """

    def numbers() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(x_ND), generator=generator).split(size):
                if len(chosen) == size:
                    yield chosen

    order = numbers()
    for _ in rounds():
        yield x_ND[next(order)]


def autocast(settings: SimpleNamespace) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=settings.autocast)


@torch.no_grad()
def fvu(reconstruct: Callable[[Tensor], Tensor], x_ND: Tensor, size: int = 1024) -> float:
    """sum |x - x_hat|^2 / sum |x - mean of these x|^2."""
    error = spread = 0.0
    mean_D = x_ND.double().mean(0)
    for x_BD in x_ND.split(size):
        error += (x_BD.double() - reconstruct(x_BD).double()).square().sum().item()
        spread += (x_BD.double() - mean_D).square().sum().item()
    return error / spread


def finish(package: str, **facts: Any) -> None:
    tell({"peak_mb": peak_mb(), "version": f"{package} {version(package)}", "torch": torch.__version__, **facts})


def peak_mb() -> float:
    """The process's own largest resident size. (ru_maxrss, elsewhere than on Linux,
    may be that of the process before exec.)
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
