"""Limits such as ">= 3.0": what a benchmark asks of a ratio, and a study of what it observed."""

import operator

OPERATORS = {"<=": operator.le, ">=": operator.ge}


def met(value: float | None, limit: str | None) -> bool | None:
    """`limit` is such as ">= 3.0"; None where there is nothing to say."""
    if value is None or limit is None:
        return None
    try:
        sign, number = limit.split()
        return OPERATORS[sign](value, float(number))
    except (ValueError, KeyError, AttributeError):
        raise ValueError(f"{limit!r} is not such as '>= 3.0' or '<= 1.25'") from None
