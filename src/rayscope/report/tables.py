"""evaluation.csv as rows in reading order, what each metric means, and whether rays win at equal bits."""
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAssignmentType=false, reportReturnType=false
# (what pandas' own annotations say of df[...] is a union of everything)

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

KEYS = ["site", "dictionary", "kind", "k", "latents", "position0"]
COLUMNS = [*KEYS, "metric", "value", "low", "high", "split", "tokens", "trained_tokens", "seed"]
ROLES = {
    "null": "Codecs and nulls",
    "baseline": "Baselines",
    "directions": "Learned directions (signed)",
    "rays": "Learned rays (never negative)",
}
SIGNED = {"abstopk"}
BASELINES = ("pca_topk", "pca_prefix")
METHODS = {  # how a baseline's value at as many bits was found: see at_bits
    "interpolated": "interpolated to as many bits",
    "nearest": "nearest point, bits within 5%",
    "fewer": "which has only fewer bits",
    "more": "which has only more bits",
    "absent": "not in this evaluation",
}
NEAR = 0.05  # bits count as equal within this share, where a curve cannot be interpolated


@dataclass(frozen=True)
class Metric:
    name: str
    heading: str
    unit: str
    meaning: str
    form: str = "{:.3f}"

    def show(self, value: float) -> str:
        return "" if math.isnan(value) else self.form.format(value)


METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "bits",
            "bits",
            "bits/token",
            "Length of one token's code: which latents are on (log2 of L choose k), 8 bits for each coefficient and "
            "one more for its sign where it has one; pca_prefix always uses the same components and pays for "
            "coefficients alone. Blank for codecs.",
            "{:.0f}",
        ),
        Metric(
            "fvu",
            "FVU",
            "share of variance",
            "Fraction of variance unexplained: squared error over squared distance from the mean, both summed over all "
            "vectors. 0 is perfect, 1 is no better than the mean. Lower is better.",
        ),
        Metric(
            "dce",
            "dCE",
            "nats/token",
            "Rise of the model's cross-entropy when the site's activations are replaced by their reconstruction, over "
            "every predicted token: the primary number. Lower is better.",
        ),
        Metric(
            "kl", "KL", "nats/token", "KL divergence from the model's own next-token distribution to the spliced one."
        ),
        Metric("l0", "L0", "latents/token", "Mean number of non-zero codes of a token.", "{:.1f}"),
        Metric(
            "loss_recovered_mean",
            "loss recovered, mean",
            "share",
            "Share won back of the loss that replacing activations by their mean costs. Never compare it across sites.",
        ),
        Metric(
            "loss_recovered_zero",
            "loss recovered, zero",
            "share",
            "The same against replacing activations by zero. Never compare it across sites.",
        ),
        Metric("dead", "dead", "share of latents", "Latents that fired on none of the evaluated tokens.", "{:.1%}"),
        Metric(
            "density",
            "density",
            "share of tokens",
            "Share of tokens on which a latent fires, mean over latents.",
            "{:.2%}",
        ),
        Metric(
            "l2_ratio",
            "l2 ratio",
            "ratio",
            "Length of the reconstruction over that of the vector; below 1 is shrinkage.",
        ),
    )
}


def role(kind: str, dictionary: str) -> str:
    """null, baseline, directions or rays: the groups of every table and the colours of every figure."""
    if kind == "codec" or any(word in dictionary.lower() for word in ("random", "shuffled", "untrained")):
        return "null"
    if kind in ("linear", "probe") or "frozen" in dictionary.lower():
        return "baseline"
    return "directions" if kind in SIGNED else "rays"


def family(dictionary: str, k: float) -> str:
    """The name without a k at its end: topk_k8, topk-8 and topk are one family at k = 8."""
    if not math.isnan(k):
        for tail in (f"k={k:.0f}", f"k{k:.0f}", f"{k:.0f}"):
            start = dictionary.removesuffix(tail)
            if start != dictionary and start[-1:] in ("_", "-", ".", "/", "@", " "):
                return start[:-1]
    return dictionary


def rows(evaluation: pd.DataFrame) -> pd.DataFrame:
    """One row for each site, dictionary, k and position0: nulls on top, learned below.

    Columns: KEYS, role, family, seeds, tokens, trained_tokens, and metric, metric_low, metric_high of every metric.
    Several seeds become their mean, and an interval that covers all of theirs. Test rows alone, where there are any.
    """
    missing = [column for column in COLUMNS if column not in evaluation]
    if missing:
        raise ValueError(f"the evaluation has no column {missing[0]!r}; its columns should be {', '.join(COLUMNS)}")
    if (evaluation["split"] == "test").any():
        evaluation = evaluation[evaluation["split"] == "test"]
    groups = evaluation.groupby(KEYS, dropna=False, sort=False)
    row = groups.ngroup()
    table = groups.agg(
        seeds=("seed", "nunique"), tokens=("tokens", "max"), trained_tokens=("trained_tokens", "max")
    ).reset_index()
    for column, how in (("value", "mean"), ("low", "min"), ("high", "max")):
        values = pd.to_numeric(evaluation[column]).groupby([row, evaluation["metric"]]).agg(how).unstack()
        for name in METRICS:
            table[name if column == "value" else f"{name}_{column}"] = values.get(name, np.nan)
    table["role"] = [role(kind, name) for kind, name in zip(table["kind"], table["dictionary"], strict=True)]
    table["family"] = [family(name, k) for name, k in zip(table["dictionary"], table["k"], strict=True)]
    order = {name: i for i, name in enumerate(dict.fromkeys(table["family"]))}
    ranks = table.assign(
        role=table["role"].map(list(ROLES).index), family=table["family"].map(order), kind=table["kind"] != "codec"
    ).sort_values(["site", "position0", "role", "kind", "family", "latents", "k"], kind="stable")
    return table.loc[ranks.index].reset_index(drop=True)


def headline_k(table: pd.DataFrame) -> float:
    """The lower middle one of the k that learned dictionaries have (8 of 4, 8, 16, 32); nan where there is none."""
    learned = table[table["role"].isin(["rays", "directions"])]
    ks = sorted((learned if len(learned) else table)["k"].dropna().unique())
    return float(ks[(len(ks) - 1) // 2]) if ks else math.nan


def at_k(table: pd.DataFrame, k: float) -> pd.DataFrame:
    """Codecs, the learned rows at this k, and of every other family the row nearest to those rays in bits per token.

    A learned family without this k shows its nearest one.
    """
    distance = (np.log(table["k"].astype(float)) - (math.log(k) if k > 0 else 0)).abs()
    if "bits" in table:
        rays = table[(table["role"] == "rays") & (table["k"] == k)]
        budget = rays.groupby(["site", "position0"])["bits"].min()
        places = pd.MultiIndex.from_frame(table[["site", "position0"]])
        in_bits = (np.log(table["bits"].astype(float)) - np.log(budget.reindex(places).to_numpy(float))).abs()
        distance = distance.where(table["role"].isin(["rays", "directions"]), in_bits.fillna(distance))
    distance = distance.fillna(0.0)
    least = distance.groupby([table["site"], table["position0"], table["family"], table["kind"]]).transform("min")
    return table[distance <= least + 1e-9]


def at_bits(curve: pd.DataFrame, metric: str, bits: float) -> dict:
    """A baseline at this many bits: value, low, high and how they were found.

    Linear in log bits between the two neighbouring points; past an end of the curve that end, "nearest" if its bits
    are within 5%, else "fewer" or "more" (the bits it has). Empty where the baseline has no point.
    """
    curve = curve.dropna(subset=["bits", metric]).sort_values("bits")
    if curve.empty:
        return {}
    log_bits, log_b = np.log(curve["bits"].to_numpy(float)), math.log(bits)
    names = {"value": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
    found = {key: float(np.interp(log_b, log_bits, curve[name].to_numpy(float))) for key, name in names.items()}
    if log_bits[0] <= log_b <= log_bits[-1]:
        return found | {"method": "interpolated"}
    end = math.exp(log_bits[0] if log_b < log_bits[0] else log_bits[-1])
    near = abs(end / bits - 1) <= NEAR
    return found | {"method": "nearest" if near else "fewer" if end < bits else "more"}


def judge(ours: dict, theirs: dict) -> tuple[str, bool | None]:
    """(outcome, do the intervals overlap): better, worse, unclear or not comparable; lower is better.

    Without an interval on both sides nothing is claimed. A rival with fewer bits may still win, one with more lose.
    """
    limits = [ours["low"], ours["high"], theirs.get("low", math.nan), theirs.get("high", math.nan)]
    if any(math.isnan(limit) for limit in limits):
        return ("unclear" if theirs else "not comparable"), None
    better, worse = ours["high"] < theirs["low"], ours["low"] > theirs["high"]
    if (theirs["method"] == "fewer" and not worse) or (theirs["method"] == "more" and not better):
        return "not comparable", not (better or worse)
    return "better" if better else "worse" if worse else "unclear", not (better or worse)


def verdicts(
    evaluation: pd.DataFrame,
    against: Sequence[str] = BASELINES,
    position0: str = "excluded",
    roles: Sequence[str] = ("rays", "directions"),
) -> list[dict]:
    """Every learned dictionary beside every rival family at the same number of bits, in fvu and dce.

    Each is {site, position0, ours, role, k, metric, baseline, bits, value, low, high, baseline_value, baseline_low,
    baseline_high, overlap, outcome, method}. See `at_bits` for the method and `judge` for the outcome.
    """
    table = rows(evaluation)
    table = table[table["position0"] == position0]
    found = []
    for ours in table[table["role"].isin(roles) & (table["bits"] > 0)].to_dict("records"):
        rivals = table[table["site"] == ours["site"]]
        for metric in ("fvu", "dce"):
            mine = {"value": ours[metric], "low": ours[f"{metric}_low"], "high": ours[f"{metric}_high"]}
            for name in against:
                theirs = at_bits(rivals[rivals["family"] == name], metric, ours["bits"])
                outcome, overlap = judge(mine, theirs)
                found.append(
                    {key: ours[key] for key in ("site", "position0", "role", "k", "bits")}
                    | {"ours": ours["dictionary"], "metric": metric, "baseline": name, **mine}
                    | {f"baseline_{key}": theirs.get(key, math.nan) for key in ("value", "low", "high")}
                    | {"overlap": overlap, "outcome": outcome, "method": theirs.get("method", "absent")}
                )
    return found


def answer(found: Sequence[dict]) -> str:
    """One sentence on whether these dictionaries beat these rivals."""
    counts = {outcome: sum(row["outcome"] == outcome for row in found) for outcome in ("better", "worse", "unclear")}
    judged, rest = sum(counts.values()), len(found) - sum(counts.values())
    if not judged:
        return "Not answered: nothing to compare at equal bits."
    for start, word in (("Yes", "better"), ("No", "worse")):
        if counts[word] == len(found):
            return f"{start}: {word} in all {len(found)} comparisons at equal bits."
    parts = [f"{n} {word}" for word, n in counts.items() if n] + ([f"{rest} not comparable"] if rest else [])
    start = "In part" if counts["better"] else "No"
    return f"{start}: of {len(found)} comparisons at equal bits, {', '.join(parts)}."


def sentence(row: dict) -> str:
    """One comparison in words."""
    metric = METRICS[row["metric"]]
    start = f"{row['ours']} (k = {row['k']:.0f}, {row['bits']:.0f} bits) against {row['baseline']}: "
    if row["method"] == "absent":
        return f"{start}not comparable, no {row['baseline']} in this evaluation"
    note = " (intervals overlap)" if row["overlap"] else " (no interval)" if row["overlap"] is None else ""
    numbers = f"{metric.heading} {metric.show(row['value'])} against {metric.show(row['baseline_value'])}"
    return f"{start}{row['outcome']}{note}, {numbers}, {METHODS[row['method']]}"


def seeds_said(evaluation: pd.DataFrame) -> str:
    """ "1 seed", or how many."""
    learned = [
        role(kind, name) in ("rays", "directions")
        for kind, name in zip(evaluation["kind"], evaluation["dictionary"], strict=True)
    ]
    seeds = evaluation[learned]["seed"].nunique() if any(learned) else evaluation["seed"].nunique()
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def summary_table(evaluation: pd.DataFrame, site: str, k: float | None = None, position0: str = "excluded") -> Table:
    """Nulls on top, ours below, at the headline k; bits beside FVU and dCE with 95% intervals."""
    table = rows(evaluation)
    table = table[(table["site"] == site) & (table["position0"] == position0)]
    table = at_k(table, headline_k(table) if k is None else k)
    shown = Table(
        title=Text(f"{site}, position 0 {position0}"),
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    shown.add_column("dictionary", overflow="fold")
    for heading in ("k", "bits", "FVU", "95%", "dCE nats", "95%"):
        shown.add_column(heading, justify="right", no_wrap=True, style="dim" if heading == "95%" else None)
    previous = None
    for row in table.to_dict("records"):
        if row["role"] != previous:
            shown.add_row(Text(ROLES[row["role"]], style="italic dim"))
        cells = [
            Text(f"  {row['dictionary']}"),
            "" if math.isnan(row["k"]) else f"{row['k']:.0f}",
            METRICS["bits"].show(row["bits"]),
        ]
        for name in ("fvu", "dce"):
            low, high = METRICS[name].show(row[f"{name}_low"]), METRICS[name].show(row[f"{name}_high"])
            cells += [METRICS[name].show(row[name]), f"{low} {high}".strip()]
        shown.add_row(*cells, style="bold" if row["role"] == "rays" else None)
        previous = row["role"]
    return shown


def print_summary(evaluation: pd.DataFrame, console: Console, k: float | None = None) -> None:
    """The table that matters for each site, and whether rays beat PCA there at equal bits."""
    headline = headline_k(rows(evaluation)) if k is None else k
    found = [row for row in verdicts(evaluation, roles=("rays",)) if row["k"] == headline]
    for site in dict.fromkeys(evaluation["site"]):
        here = [row for row in found if row["site"] == site]
        console.print(summary_table(evaluation, site, headline))
        console.print(Text(f"Do rays beat {' and '.join(BASELINES)} here? {answer(here)}", style="bold"))
        for row in here:
            console.print(Text(f"  {sentence(row)}"), soft_wrap=True)
        console.print()
    words = (
        "FVU: share of variance unexplained. dCE: rise of the loss, nats/token. Lower is better. bits: a token's code."
    )
    console.print(Text(f"{words} {seeds_said(evaluation)}."))
