"""What is right after a fault: each gives a check of how a command ended and what it left,
and a check says what is wrong.
"""

import json
import re
from collections.abc import Callable

from harness import Ended, Place, contents, differences

Right = Callable[[Ended, Place], list[str]]
LOCK = ".rayscope-lock"  # a killed command leaves its own, the next one takes it away
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def refused(*facts: str) -> Right:
    """Exit code 1 and one line, which holds the facts; what was there is as it was."""

    def right(ended: Ended, place: Place) -> list[str]:
        said = [line for line in ended.said.splitlines() if line.startswith("rayscope: ")]
        wrong = [f"exit code {ended.code}"] * (ended.code != 1) + clean(ended)
        if len(said) != 1:
            wrong.append(f"{len(said)} lines of error: {ended.last[:200]}")
        wrong += [f"no {fact!r} in {ended.last[:200]!r}" for fact in facts if fact not in "".join(said)]
        after = contents(place.here)
        return wrong + [
            f"changed {name}" for name, was in place.before.items() if after.get(name) != was and LOCK not in name
        ]

    return right


def same_as(state: str, *lost: str) -> Right:
    """Exit code 0, and the folder holds what it does in another state. lost: files that may differ."""

    def right(ended: Ended, place: Place) -> list[str]:
        wanted = place.wanted[state]
        wrong = [f"exit code {ended.code}: {ended.last[:200]}"] * (ended.code != 0) + clean(ended)
        return wrong + [d for d in differences(contents(place.out), wanted) if d.split(" ", 1)[1] not in lost]

    return right


def either(*rights: Right) -> Right:
    """Whichever of them."""

    def right(ended: Ended, place: Place) -> list[str]:
        found = [each(ended, place) for each in rights]
        return [] if [] in found else found[-1]

    return right


def clean(ended: Ended) -> list[str]:
    wrong = ["a traceback"] * ("Traceback (most recent call last)" in ended.said)
    return wrong + ["hidden characters on the terminal"] * bool(HIDDEN.search(ended.said))


def evaluated_alike(ended: Ended, place: Place) -> list[str]:
    wanted = place.wanted["evaluated"]["out/evaluation.csv"]
    wrong = [f"exit code {ended.code}: {ended.last}"] * (ended.code != 0) + clean(ended)
    return wrong + ["other numbers"] * (contents(place.out).get("out/evaluation.csv") != wanted)


def kept(files: dict[str, str]) -> Right:
    def right(ended: Ended, place: Place) -> list[str]:
        lost = [
            name
            for name, content in files.items()
            if not (place.out / name).is_file() or (place.out / name).read_text() != content
        ]
        return refused("out")(ended, place) + [f"lost {name}" for name in lost]

    return right


def victim_unharmed(ended: Ended, place: Place) -> list[str]:
    return ["another's file is overwritten"] * ((place.here / "victim").read_text() != "mine") + clean(ended)


def topk_diverged(ended: Ended, place: Place) -> list[str]:
    """The other dictionary is, bitwise, what it is alone; the diverged one is named and not there."""
    found, wanted = contents(place.out), place.wanted["trained"]
    healthy = [
        name for name in wanted if "dictionaries/" in name and "matryoshka" in name and name.endswith(".safetensors")
    ]
    wrong = refused("topk")(ended, place) + ["the healthy one differs"] * any(
        found.get(n) != wanted[n] for n in healthy
    )
    return wrong + ["the diverged one was saved"] * any("dictionaries/" in n and "/topk/" in n for n in found)


def two_of_three(ended: Ended, place: Place) -> list[str]:
    done = [k for k in (4, 999, 8) if (place.out / str(k) / "finished.json").is_file()]
    wrong = ["a traceback"] * ("Traceback" in ended.said) + [f"exit code {ended.code}"] * (ended.code != 1)
    return wrong + [f"finished: {done}"] * (done != [4, 8]) + ["999 is not named"] * ("k=999" not in ended.said)


def quiet(ended: Ended, place: Place) -> list[str]:
    return clean(ended)


def whole_text(ended: Ended, place: Place) -> list[str]:
    """As many rows of text as with a tokenizer that nothing is left in."""
    rows: dict[str, set[int]] = {}  # of each text, which its documents tell apart
    for path in place.cache.glob("text/*/text.json"):
        about = json.loads(path.read_text())
        rows.setdefault(str(about["documents"]), set()).add(about["rows"]["train"])
    return clean(ended) + [f"rows of text: {sorted(of)}" for of in rows.values() if len(of) != 1]
