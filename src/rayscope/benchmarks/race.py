"""Workers run by turns, A B C A B C: a machine that drifts hits them all alike,
and each round compares them at one time.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from operator import mul
from pathlib import Path
from statistics import median
from typing import Any

WORKERS = Path(__file__).parent / "workers"
QUIET = {
    "WANDB_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Contender:
    """script: a worker, as `workers/protocol.py` says. units: what a step does, in the table's unit (tokens, steps)."""

    name: str
    script: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None
    steps: int = 1  # a round
    units: float = 1.0


@dataclass(frozen=True)
class Result:
    """seconds and cpu_seconds: a step's mean, of each round. facts: what else the worker told at its end."""

    contender: Contender
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def units_per_second(self) -> float:
        return self.contender.units / median(self.seconds)

    def times(self, other: "Result") -> float:
        """How many times this one's seconds per unit are the other's: the median of the rounds' ratios."""
        mine, others = self.contender.units, other.contender.units
        return median((a / mine) / (b / others) for a, b in zip(self.seconds, other.seconds, strict=True))


def total(name: str, parts: Sequence[Result], shares: Sequence[float] = ()) -> Result:
    """One step of each (or the share of it that is given), summed round by round. Fails as the first that failed."""
    contender = replace(parts[0].contender, name=name, peer=None)
    failed = next((part for part in parts if part.error), None)
    if failed:
        return Result(contender, error=f"{failed.contender.name}: {failed.error}")
    shares = shares or [1.0] * len(parts)

    def summed(of_rounds: Sequence[list[float]]) -> list[float]:
        return [sum(map(mul, shares, times)) for times in zip(*of_rounds, strict=True)]

    return Result(contender, summed([part.seconds for part in parts]), summed([part.cpu_seconds for part in parts]))


class Failed(Exception):
    """A worker's last words."""


class Worker:
    """A contender's process, set up and waiting. What it writes to stderr is in `log`."""

    def __init__(self, contender: Contender, python: Path, log: Path, threads: int):
        self.log = log
        command = [str(python), str(contender.script), json.dumps({**contender.settings, "threads": threads})]
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | QUIET | counts
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was not flushed when it died
                pipe.close()

    def hear(self) -> dict[str, Any]:
        """Its next message. Raises Failed where it ends without one, or says something else."""
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            with suppress(json.JSONDecodeError):
                if isinstance(told := json.loads(line), dict):
                    return told
            raise Failed(f"said {line.strip()[:200]!r} where a message was due")
        self.process.wait()
        said = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        raise Failed(said[-1] if said else f"ended with code {self.process.returncode} and said nothing")

    def round(self, steps: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # hear() says why
            self.process.stdin.write(json.dumps({"steps": steps}) + "\n")
            self.process.stdin.flush()
        return self.hear()

    def finish(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.hear()


def race(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    threads: int,
    logs: Path,
    python: Callable[[str | None], Path],
    warm_up: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Every contender's result, in their order; one that fails has an `error` and stops none of the others.

    python(peer): the interpreter of its environment. advance: called after each turn, the warm-up's included.
    """
    logs.mkdir(parents=True, exist_ok=True)
    results = {contender.name: Result(contender) for contender in contenders}
    running: dict[str, Worker] = {}

    def turn(name: str, act: Callable[[Worker], dict[str, Any]]) -> dict[str, Any] | None:
        if results[name].error:
            return None
        try:
            return act(running[name])
        except Failed as failed:
            results[name] = replace(results[name], error=str(failed))
            return None

    with ExitStack() as stack:
        for name, result in results.items():  # one sets up at a time
            log = logs / f"{slug(name)}.log"
            try:
                interpreter = python(result.contender.peer)
            except ValueError as error:
                results[name] = replace(result, error=str(error))
                continue
            running[name] = stack.enter_context(Worker(result.contender, interpreter, log, threads))
            turn(name, Worker.hear)
        for number in range(-warm_up, rounds):
            for name, result in results.items():
                steps = 1 if number < 0 else result.contender.steps
                told = turn(name, lambda worker, steps=steps: worker.round(steps))
                if told and number >= 0:
                    result.seconds.append(sum(told["seconds"]) / steps)
                    result.cpu_seconds.append(told["cpu_seconds"] / steps)
                advance()
        for name in results:
            results[name].facts.update(turn(name, Worker.finish) or {})
    return list(results.values())


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
