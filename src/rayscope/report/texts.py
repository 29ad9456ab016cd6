"""Which text the numbers are of, which the dictionaries and the baselines were fitted on, and whether they differ."""

import pandas as pd

from rayscope.report.tables import LEARNED

NAMED = ("text", "fitted_on", "calibrated_on")  # columns of texts by name and hash; an older table may have none
DICTIONARIES, BASELINES = (*LEARNED, "told"), ("baseline", "control")


def fitted_on(evaluation: pd.DataFrame, roles: tuple[str, ...]) -> str:
    """The texts of entries of these roles, such as "docs 1a2b3c4d"; empty if there are none of these roles."""
    names = evaluation.loc[evaluation["role"].isin(roles), "fitted_on"].fillna("").astype(str)
    return " and ".join(name or "a text that is not named" for name in dict.fromkeys(names))


def texts_said(evaluation: pd.DataFrame) -> str:
    """One sentence on the text that is measured and those that were fitted on; empty for a table that has no texts."""
    if not {"text", "fitted_on"} <= set(evaluation):
        return ""
    measured = " and ".join(dict.fromkeys(evaluation["text"].dropna().astype(str))) or "a text that is not named"
    fitted: dict[str, list[str]] = {}
    for what, roles in (("dictionaries", DICTIONARIES), ("baselines", BASELINES)):
        if name := fitted_on(evaluation, roles):
            fitted.setdefault(name, []).append(what)
    thresholds = recalibrated(evaluation)
    if list(fitted) == [measured]:
        return f"Text: {measured}, {' and '.join(fitted[measured])} fitted on its training split.{thresholds}"
    parts = [f"{' and '.join(what)} fitted on {name}" for name, what in fitted.items()]
    return "; ".join([f"Text: measured on {measured}", *parts]) + f".{thresholds}"


def recalibrated(evaluation: pd.DataFrame) -> str:
    """Whose thresholds were set again, and on which text; empty if nobody's were."""
    if "calibrated_on" not in evaluation:
        return ""
    said = evaluation[["calibrated_on", "fitted_on"]].fillna("")
    again = evaluation[(said["calibrated_on"] != "") & (said["calibrated_on"] != said["fitted_on"])]
    names, places = (", ".join(dict.fromkeys(again[column].astype(str))) for column in ("dictionary", "calibrated_on"))
    return f" Thresholds of {names} set again on validation text of {places}." if len(again) else ""


def unlike_said(evaluation: pd.DataFrame) -> str:
    """A warning that belongs to every verdict on dictionaries against baselines of another text; otherwise empty."""
    if "fitted_on" not in evaluation:
        return ""
    ours, theirs = fitted_on(evaluation, DICTIONARIES), fitted_on(evaluation, BASELINES)
    if not ours or not theirs or ours == theirs:
        return ""
    return f"Unlike with unlike: the dictionaries were fitted on {ours}, the baselines on {theirs}."
