"""The saved dictionaries of a folder, each at the site of the model that it says it was trained on."""

import math
from pathlib import Path

from rayscope.dictionaries import Dictionary, find, load
from rayscope.evaluation.codecs import REFERENCES
from rayscope.evaluation.entry import role_of
from rayscope.model import LanguageModel
from rayscope.model.sites import Site, resolve


def load_dictionaries(folder: Path, model: LanguageModel) -> dict[Site, dict[str, Dictionary]]:
    """{site: {name: dictionary}}. A dictionary's name is its path below the folder, without the site's own folder.

    Raises ValueError for a dictionary of another model or width, for one that does not say its site, and for two of one
    name.
    """
    loaded: dict[Site, dict[str, Dictionary]] = {}
    places: dict[tuple[Site, str], Path] = {}
    for path, place in find(folder).items():
        dictionary = load(place)
        site = site_of(dictionary, place, model)
        name = "/".join(part for part in Path(path).parts if part != site.key) or place.name
        if name in REFERENCES:
            raise ValueError(f"{place}: {name} is a row of every table; rename the folder")
        if (site, name) in places:
            raise ValueError(
                f"{place}: {places[site, name]} is called {name} at {site.hook} too; rename one of the folders"
            )
        places[site, name] = place
        loaded.setdefault(site, {})[name] = dictionary.to(model.device)
    return loaded


def site_of(dictionary: Dictionary, place: Path, model: LanguageModel) -> Site:
    about = dictionary.provenance
    hook, trained_on = about.get("site"), about.get("model", {})
    if not hook:
        raise ValueError(
            f"{place}: config.json does not say the site; write it there, as "
            '"provenance": {"site": "blocks.3.hook_resid_post"}'
        )
    for key in ("tokens", "seed"):
        if not isinstance(about.get(key), int | None):
            raise ValueError(f"{place}: config.json has provenance.{key}={about[key]!r:.60}, not a whole number")
    try:
        role_of(dictionary)
    except ValueError as error:
        raise ValueError(f"{place}: config.json has {error}") from None
    for key, least in (("input_scale", 0.0), ("output_scale", 0.0), ("log_coefficient", -math.inf)):
        value = about.get(key, 1.0)
        if not isinstance(value, int | float) or not math.isfinite(value) or not value > least:
            raise ValueError(
                f"{place}: config.json has provenance.{key}={value!r:.60}, not a number that training wrote"
            )
    if not isinstance(hook, str) or not isinstance(trained_on, dict):
        raise ValueError(f"{place}: config.json has provenance.site={hook!r:.60}, provenance.model={trained_on!r:.60}")
    try:
        (site,) = resolve(hook, model)
    except ValueError as error:
        raise ValueError(f"{place}: provenance.site={hook!r:.60} is not one site of {model.name} ({error})") from None
    if dictionary.width != site.width:
        raise ValueError(f"{place}: width {dictionary.width}, but {hook} of {model.name} has {site.width}")
    if trained_on.get("sha256", model.fingerprint) != model.fingerprint:
        raise ValueError(
            f"{place}: trained on model {trained_on.get('name')} with other weights than {model.name}; give that model"
        )
    said, here = trained_on.get("architecture", {}), model.architecture
    other = [key for key in here if isinstance(said, dict) and said.get(key, here[key]) != here[key]]
    if other:
        raise ValueError(
            f"{place}: trained on model {trained_on.get('name')} with {other[0]} {said[other[0]]!r:.60}, "
            f"but {model.name} has {here[other[0]]!r:.60}; give that model"
        )
    return site
