"""The table of faults: what is wrong, the command that meets it, and what is right."""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import harms
import rights
from harms import Harm, all_of, cut, edited, flipped, gone, holds, nothing
from harness import Ended, Place, contents, full_disk, killed, must, perform
from kills import LINES
from rights import Right, either, refused, same_as

CHECKPOINT, ONE = "out/checkpoint.ckpt", "out/dictionaries/blocks_1_hook_resid_post/topk"
BINARY = bytes(range(256))
SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "sweep", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "n1",
}  # fmt: skip
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
NO_KEY = {
    "WANDB_BASE_URL": "https://api.wandb.ai",
    "WANDB_API_KEY": "",
    "HOME": "/nonexistent",
    "NETRC": "/nonexistent/netrc",
}
WRONG_OPTIONS = [
    "tokens=0", "tokens=20k", "latents=1.5", "seed=x", "k=null", "stream.batch_size=-1", "stream.round_tokens=0",
    "training.log_every=-1", "training.checkpoint_seconds=nan", "training.snapshots=-2",
    "training.calibration_tokens=64x",
    "dictionaries.topk.lr=-1", "dictionaries.topk.k=1.5", "dictionaries.topk.auxk=2.5", "dictionaries.topk.seed=null",
    "model.context=abc", "model.context=-5", "text.max_tokens=20k", "text.max_tokens=-1", "text.column=null",
    "sites.patterns=null", "sites.patterns=3", "threads=two", "precision=fp16", "overwrite=maybe", "stage=train",
]  # fmt: skip
ARGV = {line.name: line.argv for line in LINES}
TRAIN, EVALUATE, DEMO = ARGV["train, 2 sites x 2 dictionaries"], ARGV["evaluate"], ARGV["demo"]


@dataclass(frozen=True)
class Fault:
    """state: what `here` holds before; harm: what is done to it; right: what must come of the command."""

    name: str
    state: str
    argv: Sequence[str]
    right: Right
    harm: Harm = nothing
    variables: dict[str, str] | None = None
    file_limit: int | None = None  # bytes that a file may have, as on a full disk
    then: Right | None = None  # what must come of the same command once nothing is in its way

    def meet(self, place: Place) -> tuple[Ended, list[str]]:
        """How the command ended, and what is wrong."""
        place.restore(self.state)
        self.harm(place)
        place.before = contents(place.here)

        def prepare() -> None:
            os.environ.update(self.variables or {})
            if self.file_limit is not None:
                full_disk(self.file_limit)()

        ended = perform(self.argv, place.here, prepare=prepare)
        wrong = self.right(ended, place)
        if self.then is not None:
            wrong += [f"then {each}" for each in self.then(perform(self.argv, place.here), place)]
        return ended, wrong


def make_states(place: Place) -> None:
    """From the state `nothing`: trained, evaluated (of it), demo, and stopped, in its twelfth step."""
    place.restore("nothing")
    must(perform(TRAIN, place.here))
    place.keep("trained")
    must(perform(EVALUATE, place.here))
    place.keep("evaluated")
    place.restore("nothing")
    must(perform(DEMO, place.here))
    place.keep("demo")
    place.restore("nothing")
    perform(TRAIN, place.here, prepare=lambda: killed_at_step(12))
    place.keep("stopped")


def killed_at_step(last: int) -> None:
    from rayscope.training.trainer import DictionaryTrainer

    inner = DictionaryTrainer.record

    def record(self, step: int) -> None:
        inner(self, step)
        if step == last:
            killed()

    DictionaryTrainer.record = record


def faults() -> Iterator[Fault]:
    yield from of_checkpoints()
    yield from of_resuming()
    yield from of_dictionaries()
    yield from of_tables()
    yield from of_folders()
    yield from of_arguments()
    yield from of_inputs()


def of_checkpoints() -> Iterator[Fault]:
    right = either(same_as("trained"), refused("checkpoint.ckpt"))
    damages: dict[str, Harm] = {
        "cut": cut(CHECKPOINT),
        "empty": holds(CHECKPOINT, b""),
        "is text": holds(CHECKPOINT, "no checkpoint"),
        "has one bit flipped": flipped(CHECKPOINT),
        "is a pickle with code": holds(CHECKPOINT, pickle.dumps(harms.Code())),
    }
    for how, harm in damages.items():
        yield Fault(f"checkpoint.ckpt {how}", "stopped", TRAIN, right, harm)


def of_resuming() -> Iterator[Fault]:
    for tasks in ("1", "4"):
        name = f"Slurm, {tasks} tasks, another run's hpc_ckpt in the current folder"
        yield Fault(
            name, "nothing", TRAIN, same_as("trained"), harms.foreign_checkpoint, {**SLURM, "SLURM_NTASKS": tasks}
        )
    yield Fault("torchrun's variables", "nothing", TRAIN, same_as("trained"), variables=TORCHRUN)
    yield Fault("another text than before the stop", "stopped", TRAIN, refused("text"), harms.more_text)
    yield Fault("other weights than before the stop", "stopped", TRAIN, refused("model"), harms.other_weights)
    for name in ("config.yaml", "environment.json"):
        for how, content in {"empty": b"", "binary": BINARY, "a list": b"[1]"}.items():
            yield Fault(f"{name} {how}", "stopped", TRAIN, refused(name), holds(f"out/{name}", content))
    right = either(same_as("trained", "out/training.csv"), refused("training.csv"))
    yield Fault("training.csv binary", "stopped", TRAIN, right, holds("out/training.csv", BINARY))
    yield Fault("trained, but a dictionary is gone", "trained", TRAIN, refused("topk"), gone(ONE, "out/finished.json"))
    for size in (3_000, 30_000, 120_000):
        name, again = f"no file may grow beyond {size:,} bytes", same_as("trained")
        yield Fault(name, "nothing", TRAIN, refused("larger than is allowed", "out/"), file_limit=size, then=again)
    yield Fault("one dictionary diverges", "nothing", [*TRAIN, "dictionaries.topk.lr=1e30"], rights.topk_diverged)


def of_dictionaries() -> Iterator[Fault]:
    bare = [
        "evaluate",
        "out=out",
        *(a for a in EVALUATE if a.startswith(("evaluation.", "baselines", "threads", "latents"))),
    ]
    yield Fault("evaluate is not told model, text, context", "trained", bare, rights.evaluated_alike)
    nothing_seen = [*without(EVALUATE, "evaluation.validation_tokens"), "evaluation.validation_tokens=0"]
    yield Fault("evaluate, 0 validation tokens", "trained", nothing_seen, refused("evaluation.validation_tokens=0"))
    weights = f"{ONE}/weights.safetensors"
    yield Fault("weights.safetensors cut", "trained", EVALUATE, refused("topk"), cut(weights))
    yield Fault("weights.safetensors with one bit flipped", "trained", EVALUATE, refused("topk"), flipped(weights))
    changes: dict[str, Callable[[dict], object]] = {
        "a list": lambda config: [config],
        "without sha256": lambda config: config.pop("sha256") and None,
        "without provenance": lambda config: config.pop("provenance") and None,
        "with an unknown argument": lambda config: config["arguments"].update(colour="red"),
        "of another width": lambda config: config["arguments"].update(width=31),
        "of 10^15 latents": lambda config: config["arguments"].update(latents=10**15),
        "with a site of escape codes": lambda config: config["provenance"].update(site="\x1b]0;mine\x07\u202e"),
    }
    for how, change in changes.items():
        yield Fault(f"config.json {how}", "trained", EVALUATE, refused("topk"), edited(f"{ONE}/config.json", change))
    yield Fault("a dictionary's name holds escape codes", "trained", EVALUATE, rights.quiet, harms.hostile_name(ONE))


def of_tables() -> Iterator[Fault]:
    for name in ("evaluation.csv", "token_features.csv", "contexts.json"):
        for how, harm in {
            "cut": cut(f"out/{name}"),
            "empty": holds(f"out/{name}", b""),
            "binary": holds(f"out/{name}", BINARY),
        }.items():
            yield Fault(f"{name} {how}", "demo", ["report", "out=out", "studies=null"], refused(name), harm)
    unfinished = all_of(gone("out/finished.json"), cut("out/evaluation.csv", 0.501))
    yield Fault(
        "an unfinished demo's evaluation.csv cut",
        "demo",
        DEMO,
        either(same_as("demo"), refused("evaluation.csv")),
        unfinished,
    )


def of_folders() -> Iterator[Fault]:
    mine = {"report/notes.md": "mine", "dictionaries/english.txt": "mine", "training.csv": "mine"}
    harm = all_of(*(holds(f"out/{name}", content) for name, content in mine.items()))
    yield Fault(
        "overwrite=true in a folder of one's own", "nothing", [*TRAIN, "overwrite=true"], rights.kept(mine), harm
    )
    yield Fault("out= and nothing", "nothing", [*without(TRAIN, "out"), "out="], refused("out="))
    yield Fault(
        "a link planted at a temporary's old name", "nothing", TRAIN, rights.victim_unharmed, harms.planted_link
    )


def of_arguments() -> Iterator[Fault]:
    yield Fault("a key twice", "nothing", [*TRAIN, "k=8"], refused("k is given 2 times"))
    yield Fault("k=4,8 without -m", "nothing", [*without(TRAIN, "k"), "k=4,8"], refused("k=4,8", "-m"))
    two = "dictionaries=topk,abstopk"
    yield Fault(f"{two} without -m", "nothing", [*without(TRAIN, "dictionaries"), two], refused(two, "-m"))
    for option in WRONG_OPTIONS:
        key = option.partition("=")[0]
        yield Fault(option, "nothing", [*without(TRAIN, key), option], refused(key))
    sweep = ["train", "-m", *without(TRAIN[1:], "out", "k"), "k=4,999,8", "out=out/${k}"]
    yield Fault("-m, the second job of three is wrong", "nothing", sweep, rights.two_of_three)
    yield Fault(
        "W&B without a key", "nothing", [*TRAIN, "logger=wandb"], refused("wandb login", "offline"), variables=NO_KEY
    )


def of_inputs() -> Iterator[Fault]:
    for how, harm in {
        "with names of torch.compile": harms.renamed_tensors("_orig_mod."),
        "without a tensor": harms.without_tensor("transformer.h.1.mlp.c_fc.weight"),
        "deeper than its config.json": edited("model/config.json", lambda config: config.update(n_layer=2)),
        "of a stale config.json": edited("model/config.json", lambda config: config.update(vocab_size=300)),
    }.items():
        yield Fault(f"a model {how}", "nothing", TRAIN, refused("model.name"), harm)
    state = harms.tokenizer_state(
        {"truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}}
    )
    yield Fault("truncation left in tokenizer.json", "nothing", TRAIN, rights.whole_text, state)
    table = 'text\n"one"\n"two, and no end\n' + '"three"\n' * 9
    yield Fault(
        "a quote that is never closed in a csv",
        "nothing",
        [*without(TRAIN, "text.files"), "text.files=[a.csv]"],
        refused("a.csv"),
        holds("a.csv", table),
    )


def without(argv: Sequence[str], *keys: str) -> list[str]:
    return [argument for argument in argv if argument.partition("=")[0] not in keys]
