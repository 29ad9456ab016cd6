"""The Hugging Face libraries without their own words on the terminal, and what their errors mean in one line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("transformers", "huggingface_hub", "datasets")
LONGEST = 200  # characters of a library's message


@contextmanager
def quiet() -> Iterator[None]:
    """No tables, retries and warnings of these libraries; what is wrong reaches the user as our error."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def unreachable(error: BaseException, kind: str) -> str | None:
    """Why a name leads nowhere, if that is what the error says; kind: "model" or "dataset"."""
    from huggingface_hub import errors

    meanings = (
        (errors.GatedRepoError, f"the {kind} is gated: accept its terms on the hub and log in (hf auth login)"),
        (errors.RepositoryNotFoundError, f"no such folder here, and no such {kind} on the hub, or a private one"),
        (errors.RevisionNotFoundError, f"the {kind} has no such revision"),
        (errors.HFValidationError, f"no such folder here, and not a name on the hub, such as OWNER/{kind.upper()}"),
        (
            (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled),
            "no such folder here, not in the hub's cache, and the hub cannot be reached",
        ),
    )
    chain = list(causes(error))
    return next((said for types, said in meanings if any(isinstance(each, types) for each in chain)), None)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def first_words(error: BaseException) -> str:
    """Its type and the start of its message, whose rest is often advice for programmers;
    of a field that is wrong, which.
    """
    lines = [line.strip() for line in str(error).strip().split("\n")]
    if lines[0].startswith("Validation error") and len(lines) > 1:
        return lines[1].removeprefix("TypeError: ").partition(" Errors: ")[0][:LONGEST]
    return f"{type(error).__name__}: {lines[0]}"[:LONGEST]
