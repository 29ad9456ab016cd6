"""Kills at every file operation, at random moments and by polite signals;
the same command again must give, bitwise, what an uninterrupted run does.
"""

import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness import Place, differences, killed_soon, must, perform

NAMES = "[topk,matryoshka_batchtopk]"
SITES = "[blocks.1.hook_resid_post,blocks.1.mlp.hook_post]"


@dataclass(frozen=True)
class Line:
    """A command line that is killed and given again. `before`: lines that have been run when it starts."""

    name: str
    argv: list[str]
    before: list[list[str]] = field(default_factory=list)
    fresh_cache: bool = False
    slow: bool = False  # not among the quick ones


@dataclass
class Tally:
    """What came of the kills of one line."""

    name: str
    operations: int = 0
    kills: int = 0
    equal: int = 0
    wrong: list[str] = field(default_factory=list)


def lines(steps: int = 16) -> list[Line]:
    source = [
        "model=gpt2",
        "model.name=model",
        "model.context=null",
        "text=files",
        "text.files=[prose.txt]",
        "device=cpu",
    ]
    source += ["threads=1", "stream.batch_size=64", "stream.round_tokens=256"]
    sizes = [f"tokens={steps * 64}", "latents=64", "k=4", f"sites.patterns={SITES}", "training.calibration_tokens=128"]
    training = [*source, *sizes, "training.checkpoint_steps=5", "training.log_every=4", "training.snapshots=3"]
    baselines = ["baselines=pca", "baselines.fit_tokens=512"]
    evaluation = [
        "evaluation.tokens=512",
        "evaluation.splice_tokens=256",
        "evaluation.validation_tokens=256",
        "evaluation.draws=20",
    ]
    features = [
        "features.tokens=1024",
        "features.most_frequent=3",
        "features.spaced=0",
        "features.min_count=5",
        "features.contexts=2",
    ]
    first = ["train", *training, f"dictionaries={NAMES}"]
    train = [*first, "out=out"]
    tuning = ["stage=kl", "finetuning.folder=first/dictionaries", "finetuning.tokens=512", "finetuning.rows=2"]
    demo = ["training.snapshot_names=null", "dictionaries=[topk]", *baselines, *evaluation, *features]
    demo += ["elsewhere.max_tokens=40_000", "out=out"]
    shrunk = "{seeds:[0,1],latents:64,ks:[4],tokens:1024,fit_tokens:1024,held_out:512,lr:2e-3}"
    study = [*source, "sites.patterns=[blocks.1.hook_resid_post]", f"study.sizes.demo={shrunk}", "study.run.sample=512"]
    return [
        Line("train, 2 sites x 2 dictionaries", train),
        Line("train into a fresh cache", train, fresh_cache=True, slow=True),
        Line("train overwrite=true on a finished run", [*train, "overwrite=true"], before=[train], slow=True),
        Line("train stage=kl", [*train, *tuning], before=[[*first, "out=first"]]),
        Line(
            "evaluate",
            ["evaluate", *source, "latents=64", *baselines, *evaluation, "out=out"],
            before=[train],
            slow=True,
        ),
        Line(
            "features", ["features", *source, "latents=64", *baselines, *features, "out=out"], before=[train], slow=True
        ),
        Line("demo", ["demo", *training, *demo], slow=True),
        Line("study surrogate, shrunk", ["study", "surrogate", *study, "out=out"], slow=True),
    ]


LINES = lines()


def points(operations: list[str], every: bool) -> list[int]:
    """Where to kill: before each operation, or before the first of each kind on each kind of file."""
    if every:
        return list(range(len(operations) + 1))
    kinds = [re.sub(r"blocks_[^/]*|\d+|topk|matryoshka_batchtopk", "*", operation) for operation in operations]
    return sorted({kind: number for number, kind in reversed(list(enumerate(kinds)))}.values())


def kills(place: Place, line: Line, *, every: bool, randomly: int, seed: int = 0) -> Iterator[Tally]:
    """Kills the line at its file operations (every one, or the first of each kind), and `randomly` times each at a
    moment within an operation, at any moment, and by a polite signal; gives it again, and yields the tally after each.
    """
    rng, tally, watch = random.Random(seed), Tally(line.name), [place.out, place.cache]
    place.restore("nothing")
    for argv in line.before:
        must(perform(argv, place.here))
    place.keep(line.name)
    must(perform(line.argv, place.here))  # the first packs the text, as no other will
    begin(place, line)
    began = time.monotonic()
    whole = must(perform(line.argv, place.here, watch=watch))
    seconds, wanted, operations = time.monotonic() - began, place.results(line.fresh_cache), whole.operations
    tally.operations = len(operations)
    for how, plan in plans(operations, seconds, watch, rng, every=every, randomly=randomly):
        begin(place, line)
        ended = perform(line.argv, place.here, **plan)
        place.grow_old()
        again = perform(line.argv, place.here)
        wrong = differences(place.results(line.fresh_cache), wanted)
        if again.code or "Traceback" in ended.said + again.said:
            wrong.insert(0, f"exit {again.code}: {again.last if again.code else ended.last}")
        tally.kills += 1
        tally.equal += not wrong
        if wrong:
            tally.wrong.append(f"{how}: {'; '.join(wrong[:3])}")
        yield tally


def begin(place: Place, line: Line) -> None:
    place.restore(line.name)
    if line.fresh_cache:
        shutil.rmtree(place.cache, ignore_errors=True)


def plans(operations: list[str], seconds: float, watch: list[Path], rng: random.Random, *, every: bool, randomly: int):
    """(how, keyword arguments of `perform`) of each kill."""
    for at in points(operations, every):
        yield f"before {(*operations, 'the end')[at]}", {"watch": watch, "at": at}
    for _ in range(randomly):
        at = rng.randrange(len(operations))
        yield f"within {operations[at]}", {"watch": watch, "at": at, "act": killed_soon(rng.uniform(1e-5, 3e-3))}
        yield "at random", {"after": rng.uniform(0.02, seconds)}
        sent = rng.choice([signal.SIGTERM, signal.SIGINT])
        yield sent.name, {"after": rng.uniform(0.02, seconds), "sent": sent}
