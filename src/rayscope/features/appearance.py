"""When a token's detector appears in training: the first snapshot in which one latent detects the token."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rayscope.dictionaries import Dictionary, load
from rayscope.features.detection import choose
from rayscope.features.token_features import PREDICATES, collect, ranked
from rayscope.features.tokens import Tokens

if TYPE_CHECKING:
    from rayscope.model.sites import Site
    from rayscope.streams.stream import Batch

REACHED = 0.8  # balanced accuracy


def appearance(
    snapshots: Iterable[tuple[int, Mapping[str, Mapping[str, Dictionary]]]],
    validation: Iterable["Batch"],
    tokens: Tokens,
) -> pd.DataFrame:
    """key, dictionary, predicate, token_id, appeared_at: the fewest training tokens at which a snapshot's best latent
    detected the token with balanced accuracy REACHED on validation; tokens that none detected have no row.

    snapshots: (trained tokens, {site.key: {name: Dictionary}}), in any order; validation is read once for each.
    """
    rows: dict[tuple, int] = {}
    for trained, dictionaries in snapshots:
        labels, codes = collect(validation, dictionaries)
        for key, named in dictionaries.items():
            for name, dictionary in named.items():
                ranks = ranked(codes[key][name], dictionary.signed)
                for predicate in PREDICATES:
                    chosen = choose(ranks, labels.classes(predicate, tokens), len(tokens))
                    detected_T = chosen.found_T & (chosen.balanced_accuracy_T >= REACHED)
                    for token_id in tokens.ids_T[detected_T.numpy()].tolist():
                        place = (key, name, predicate, token_id)
                        rows[place] = min(trained, rows.get(place, trained))
    names = ["key", "dictionary", "predicate", "token_id", "appeared_at"]
    return pd.DataFrame([(*place, trained) for place, trained in rows.items()], columns=names)


def with_appearance(table: pd.DataFrame, appeared: pd.DataFrame) -> pd.DataFrame:
    """The table with appeared_at filled in on the rows of real labels."""
    names = ["key", "dictionary", "predicate", "token_id"]
    known = appeared.set_index(names)["appeared_at"].to_dict()
    keys = table["site"].str.replace(".", "_", regex=False)
    places = zip(keys, table["dictionary"], table["predicate"], table["token_id"], table["labels"], strict=True)
    values = [known.get(tuple(place[:4])) if place[4] == "real" else None for place in places]
    return table.assign(appeared_at=pd.array(values, "Int64"))


def snapshots(folder: Path, sites: Sequence["Site"]) -> Iterator[tuple[int, dict[str, dict[str, Dictionary]]]]:
    """(tokens, {site key: {name: dictionary}}) of what training saved on the way; what a kill left is not read."""
    for place in sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name)):
        found = {site.key: sorted((place / site.key).glob("[!.]*/config.json")) for site in sites}
        yield (
            int(place.name),
            {key: {path.parent.name: load(path.parent) for path in paths} for key, paths in found.items()},
        )
