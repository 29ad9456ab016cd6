"""When a token's detector appears in training: between which two snapshots, and beyond what the initial rows detect.

S snapshots, T tokens.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rayscope.dictionaries import Dictionary, load
from rayscope.features.detection import Detectors
from rayscope.features.scores import FOUND, labelled
from rayscope.features.token_features import collect, detected
from rayscope.features.tokens import Tokens

if TYPE_CHECKING:
    from rayscope.model.sites import Site
    from rayscope.streams.stream import Batch

IN_A_ROW = 3  # snapshots in which a token must be found
SCORES = ("balanced_accuracy", "hard_auroc")  # both must be over FOUND
PLACE = ["key", "dictionary", "predicate", "token_id"]


def appearance(
    snapshots: Iterable[tuple[int, Mapping[str, Mapping[str, Dictionary]]]],
    validation: Iterable["Batch"],
    test: Iterable["Batch"],
    tokens: Tokens,
) -> pd.DataFrame:
    """PLACE, appeared_after, appeared_by, censored: see `bracket`. Chosen on validation, scored on test, as in
    token_features.csv; found if both SCORES are over FOUND once what the initial rows detect is taken off.

    snapshots: (training tokens, {site.key: {name: Dictionary}}) in rising order, the first of 0 tokens: the initial
    rows. A dictionary that is not in the first has no rows, nor has a token without scores. All are held at once, so
    that each text is read once.
    """
    saved: dict[str, dict[tuple[str, int], Dictionary]] = {}
    for trained, dictionaries in snapshots:
        for key, named in dictionaries.items():
            saved.setdefault(key, {}).update({(name, trained): dictionary for name, dictionary in named.items()})
    (seen, codes), (new, new_codes) = collect(validation, saved), collect(test, saved)
    real = labelled(seen, new, tokens)
    rows = []
    for key, at_site in saved.items():
        for name in [name for name, trained in at_site if trained == 0]:
            times = [trained for other, trained in at_site if other == name]
            each = [
                detected(codes[key][name, t], new_codes[key][name, t], at_site[name, t].signed, real) for t in times
            ]
            for labelling, score_S2T in zip(real, zip(*map(scores, each), strict=True), strict=True):
                for token_id, found_S in found_beyond(np.stack(score_S2T), tokens):
                    rows.append((key, name, labelling.predicate, token_id, *bracket(times, found_S)))
    return pd.DataFrame(rows, columns=[*PLACE, "appeared_after", "appeared_by", "censored"])


def scores(detected_J: Iterable[tuple[Detectors, dict[str, Any]]]) -> list[np.ndarray]:
    """(2, T) of each labelling: SCORES."""
    return [np.stack([columns[score] for score in SCORES]) for _, columns in detected_J]


def found_beyond(score_S2T: np.ndarray, tokens: Tokens) -> Iterator[tuple[int, np.ndarray]]:
    """(token id, found_S) of every token whose scores are known."""
    found_ST: np.ndarray = np.all(beyond(score_S2T, score_S2T[0]) > FOUND, axis=1)
    known_T = np.isfinite(score_S2T).all((0, 1))
    yield from zip(tokens.ids_T[known_T].tolist(), found_ST.T[known_T], strict=True)


def beyond(score: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """The score on a scale on which what the initial rows reach (at least chance, .5) is .5 and a perfect one is 1.

    .5 for any score if the initial rows are perfect.
    """
    room = 1 - np.clip(initial, 0.5, 1)
    return 1 - 0.5 * np.divide(1 - score, room, out=np.ones_like(score), where=room > 0)


def bracket(times: Sequence[int], found_S: Sequence[bool] | np.ndarray) -> tuple[int, int | None, bool]:
    """(appeared_after, appeared_by, censored): the snapshot before the first of IN_A_ROW in a row that found the token,
    and that one. The first snapshot, which is the reference, has never found it.

    Censored, without appeared_by, if there is no such row: it has not appeared by appeared_after, the last snapshot or,
    if the last ones (fewer than IN_A_ROW) did find it, the one before these.
    """
    for s in range(1, len(times) - IN_A_ROW + 1):
        if all(found_S[s : s + IN_A_ROW]):
            return times[s - 1], times[s], False
    last = len(times) - 1
    while last > 0 and found_S[last]:
        last -= 1
    return times[last], None, True


def with_appearance(table: pd.DataFrame, appeared: pd.DataFrame) -> pd.DataFrame:
    """The table with appeared_after, appeared_by and censored filled in on the rows of real labels."""
    keys = table["site"].str.replace(".", "_", regex=False)
    places = table.assign(key=keys)[[*PLACE, "labels"]]
    found = places.merge(appeared.assign(labels="real"), how="left", on=[*PLACE, "labels"])
    types = {"appeared_after": "Int64", "appeared_by": "Int64", "censored": "boolean"}
    return table.assign(**{name: found[name].astype(kind).array for name, kind in types.items()})


def snapshots(folder: Path, sites: Sequence["Site"]) -> Iterator[tuple[int, dict[str, dict[str, Dictionary]]]]:
    """(tokens, {site key: {name: dictionary}}) of what training saved on the way, in rising order; what a kill left is
    not read."""
    for place in sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name)):
        found = {site.key: sorted((place / site.key).glob("[!.]*/config.json")) for site in sites}
        yield (
            int(place.name),
            {key: {path.parent.name: load(path.parent) for path in paths} for key, paths in found.items()},
        )
