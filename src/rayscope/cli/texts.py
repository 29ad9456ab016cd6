"""Texts other than the one measured: what saved dictionaries were trained on, for the baselines to be fitted on too;
and one of another kind, to measure on as well.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from rayscope.cli.options import TEXT
from rayscope.console import say
from rayscope.dictionaries import Dictionary
from rayscope.errors import explain
from rayscope.model.sites import Site
from rayscope.records import Records, same_inputs
from rayscope.runs.settings import run_settings
from rayscope.streams.source import Source
from rayscope.text import PackedText, fingerprint_of, pack, said

Loaded = Mapping[Site, Mapping[str, Dictionary]]


def of_baselines(choice: str, source: Source, learned: Loaded, folder: Path, cache: str | None) -> Source:
    """The source whose training text baselines are fitted on: what `baselines.text` means.

    evaluated: the source. dictionaries: the text that those of the folder were trained on; ValueError if it cannot be
    read again. auto: dictionaries, or, if it cannot be read, evaluated, which is said.
    """
    try:
        text = source.text if choice == "evaluated" else trained_on(source, learned, folder, cache)
    except (ValueError, HydraException) as error:  # its files are gone, the hub is out of reach, a package is missing
        why = explain(error)
        if choice == "dictionaries":
            raise ValueError(f"baselines.text=dictionaries: {why}; give baselines.text=evaluated") from None
        say(f"baselines: fitted on the text that is measured, {said(source.text.provenance)} ({why})")
        text = source.text
    name(learned, source.text, text)
    return source if text.fingerprint == source.text.fingerprint else replace(source, text=text)


def trained_on(source: Source, learned: Loaded, folder: Path, cache: str | None) -> PackedText:
    """The one text that the dictionaries were trained on, by their provenance, at the source's context.

    Raises ValueError, with the reason, if there is no such text or no run that says how to read it.
    """
    found = [d.provenance.get("text") for named in learned.values() for d in named.values()]
    texts = {about["sha256"]: about for about in found if about and said(about)}
    if set(texts) == {source.text.fingerprint}:
        return source.text
    if len(texts) != 1:
        several = f"were trained on several texts: {', '.join(map(said, texts.values()))}"
        raise ValueError(f"the dictionaries {several if texts else 'do not say which text they were trained on'}")
    (about,) = texts.values()
    settings = run_settings(folder).get("text")
    if not settings:
        raise ValueError(f"no run's config.yaml says how to read {said(about)}, which they were trained on")
    documents, tokenizer = hydra.utils.instantiate(settings), source.model.tokenizer
    if fingerprint_of(documents, tokenizer, about.get("context")) != about["sha256"]:
        raise ValueError(f"{said(about)}, which they were trained on, is not what their run's config.yaml names now")
    return pack(documents, tokenizer, source.text.context, cache)


def of_another_kind(config: DictConfig, source: Source, records: Records) -> Source:
    """The source of the text that `elsewhere` names. Raises ValueError in terms of its options."""
    try:
        documents = hydra.utils.instantiate(config.elsewhere)
        text = pack(documents, source.model.tokenizer, source.text.context, config.cache)
    except (ValueError, HydraException) as error:
        options = "|".join(name for name in TEXT if name.isidentifier())
        raise ValueError(re.sub(rf"\btext(?=:|\.(?:{options})\b)", "elsewhere", str(explain(error)))) from None
    same_inputs(records, {"elsewhere": text.fingerprint})
    return replace(source, text=text)


def name(learned: Loaded, *texts: PackedText) -> None:
    """Gives the text in a dictionary's provenance its name, if it was saved before texts had any."""
    names = {text.fingerprint: text.name for text in texts}
    for named in learned.values():
        for dictionary in named.values():
            about = dictionary.provenance.get("text")
            if about and said(about) and about["sha256"] in names:
                about.setdefault("name", names[about["sha256"]])
