"""Are the metrics what they are said to be? Codecs whose numbers are known in closed form, on real activations.

N vectors, D site width.
"""

# pandas' annotations call df[...] a union of everything, so these are off in this file.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from rayscope.baselines.pca import pca
from rayscope.dictionaries import Codes
from rayscope.dictionaries.code_length import bits
from rayscope.drawing import COLOURS, MARKERS, label, panels
from rayscope.evaluation import metrics
from rayscope.evaluation.codecs import Codec, Identity, Mean, Position0, references
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.measure import measure
from rayscope.evaluation.measurement import Measurement
from rayscope.model.sites import Site
from rayscope.streams.source import Source
from rayscope.streams.statistics import Moments
from rayscope.streams.stream import Vectors
from rayscope.studies.intervals import Observed, over_seeds, resamples
from rayscope.studies.setting import Findings, Setting

FAULTY = ("per_token_ratio", "about_zero", "scalar_mean", "centred_residual")
COLUMNS = ["site", "seed", "by", "codec", "metric", "position0", "tokens", "expected", "observed", "error", *FAULTY]
DRAWS = 1000
CHUNK = 4096  # vectors in float64 at once


def metric_sanity(setting: Setting, *, tokens: int, splice_rows: int) -> Findings:
    """A hand case. By the metrics alone: identity, mean, the codec that knows only position 0, half of the way from the
    mean, the same with a constant error; invariance to scale and to batches. By the whole evaluation, model and splices
    in it: identity, mean, position 0, and the first quarter of the vectors' own principal components.

    Observes `error`, the largest |observed - expected|, and `position0`, the explained variance, at the first residual
    site (at the first, if there is none) and position 0 included, of the codec that knows only whether a vector stands
    there.
    """
    for seed in setting.seeds:
        at_seed = replace(setting, source=replace(setting.source, seed=seed))
        at_seed.check_rows(tokens=tokens)
    rows, known = list(hand_cases()), []
    for seed in setting.seeds:
        source = replace(setting.source, seed=seed)
        for site in setting.sites:
            vectors = read(source, site, tokens)
            about = {"site": site.hook, "seed": seed}
            rows += [about | {"by": "metrics", "tokens": len(vectors.x_ND)} | row for row in explained(vectors)]
            measured, expected = evaluated(source, site, vectors, tokens, splice_rows)
            rows += [about | {"by": "evaluation"} | row for row in compared(measured, expected)]
            if site is setting.residual:
                known.append(knows_position0(measured, seed))
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    table["error"] = (table["observed"] - table["expected"]).abs()
    observed = {"error": Observed.exactly(table["error"].max()), "position0": over_seeds(known)}
    return Findings(table, observed, figure(table))


def hand_cases() -> Iterator[dict]:
    x, x_hat = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    row = {"by": "metrics", "codec": "hand case"}
    yield row | {"metric": "fvu", "expected": 0.2, "observed": metrics.fvu(x, x_hat)}
    yield row | {"metric": "bits", "expected": 605.0, "observed": round(bits(24_576, 32, signed=False))}


def read(source: Source, site: Site, tokens: int) -> Vectors:
    """What the evaluation reads at a site, as one document on the CPU."""
    parts = [window.at(site).to("cpu") for window in source.windows("test", [site], whole_rows(source, tokens))]
    x_ND, tokens_N, first_N = (torch.cat([getattr(p, name) for p in parts]) for name in ("x_ND", "tokens_N", "first_N"))
    return Vectors(x_ND, x_ND, tokens_N, torch.zeros_like(tokens_N), first_N)


def chunks(vectors: Vectors, size: int = CHUNK) -> Iterator[Vectors]:
    """In float64."""
    for chosen in torch.arange(len(vectors.first_N)).split(size):
        yield vectors.take(chosen).to(torch.float64)


def whole_rows(source: Source, tokens: int) -> int:
    """So many tokens that each reader of whole rows reads the same."""
    return max(1, tokens // source.text.context) * source.text.context


@dataclass(frozen=True)
class Known:
    """What explained variances follow from: means of all vectors, at position 0 and elsewhere;
    spread, sum |x - mean|^2;
    share, that of position 0."""

    mean_D: Tensor
    first_D: Tensor
    rest_D: Tensor
    spread: float
    vectors: int
    share: float

    @classmethod
    def of(cls, vectors: Vectors) -> "Known":
        by_place = metrics.VarianceSums(vectors.x_ND.shape[1], 2)  # places as documents
        for part in chunks(vectors):
            by_place.update(part.x_ND, part.first_N.long())
        counts_P, count, means_PD = by_place.count_G, by_place.count_G.sum(), by_place.means()
        mean_D = (counts_P / count) @ means_PD
        first_D = means_PD[1] if counts_P[1] else means_PD[0]
        total = by_place.of_documents().sum().item()
        return cls(mean_D, first_D, means_PD[0], total, int(count), (counts_P[1] / count).item())

    @property
    def gap(self) -> float:
        """n |mean at position 0 - mean elsewhere|^2 over the spread."""
        return self.vectors * (self.first_D - self.rest_D).square().sum().item() / self.spread

    @property
    def between(self) -> float:
        """What knowing position 0 explains: n0 n1 / n |m0 - m1|^2 over the spread, that between groups."""
        return self.share * (1 - self.share) * self.gap


class Half(Codec):
    """x_hat = half of the way from the mean to x, plus an error that is the same for all vectors."""

    def __init__(self, mean_D: Tensor, error_D: Tensor):
        self.mean_D, self.error_D = mean_D, error_D

    def decode(self, codes: Codes, vectors: Vectors, value_bits: int | None = None) -> Tensor:
        return self.mean_D + (vectors.x_ND - self.mean_D) / 2 + self.error_D


def codecs(known: Known) -> dict[str, tuple[Codec, float]]:
    """(codec, the explained variance of the vectors that it knows)."""
    mean_D = known.mean_D
    offset_D = (known.spread / known.vectors / len(mean_D)) ** 0.5 * torch.ones_like(mean_D)
    return {
        "identity": (Identity(), 1.0),
        "mean": (Mean(mean_D), 0.0),
        "position0": (Position0(known.first_D, known.rest_D), known.between),
        "half": (Half(mean_D, 0 * offset_D), 0.75),
        "half, with a constant error": (Half(mean_D, offset_D / 2), 0.5),
    }


def explained(vectors: Vectors) -> Iterator[dict]:
    """Explained variance, 1 - FVU, of every codec, with position 0 and without."""
    for position0, these in (("included", vectors), ("excluded", vectors.take(~vectors.first_N))):
        known = Known.of(these)
        of_known = codecs(known)
        for name, (codec, expected) in of_known.items():
            row = {"codec": name, "metric": "ev", "position0": position0, "expected": expected}
            yield row | {"observed": explained_variance(these, codec)} | faulty(these, codec, known)
        half, _ = of_known["half"]
        row = {"metric": "ev", "position0": position0, "expected": 0.75}
        yield row | {"codec": "half, x 1000", "observed": explained_variance(these, half, scale=1000.0)}
        yield row | {"codec": "half, in batches of 97", "observed": explained_variance(these, half, batch=97)}


def explained_variance(vectors: Vectors, codec: Codec, batch: int = CHUNK, scale: float = 1.0) -> float:
    variance = metrics.VarianceSums(vectors.x_ND.shape[1], 1)
    sums = metrics.ErrorSums(variance)
    for part in chunks(vectors, batch):
        x_ND, x_hat_ND = scale * part.x_ND, scale * codec.reconstruct(part)
        variance.update(x_ND, part.documents_N)
        sums.update(*metrics.errors(x_ND, x_hat_ND), part.documents_N)
    return 1 - sums.fvu(torch.ones(1, 1, dtype=torch.float64)).item()


def faulty(vectors: Vectors, codec: Codec, known: Known) -> dict[str, float]:
    """Explained variance as it is often computed: mean of per-token ratios; variance about zero;
    about one number for all dimensions; of the residual about its own mean, which hides a constant error.
    """
    ratio, error, square = torch.zeros(3, dtype=torch.float64)
    residual_D = torch.zeros_like(known.mean_D)
    for part in chunks(vectors):
        x_ND = part.x_ND
        residual_ND = x_ND - codec.reconstruct(part)
        error_N = residual_ND.square().sum(1)
        ratio += (error_N / (x_ND - known.mean_D).square().sum(1)).sum()
        error += error_N.sum()
        square += x_ND.square().sum()
        residual_D += residual_ND.sum(0)
    n, width = known.vectors, len(known.mean_D)
    about_scalar = square - n * width * known.mean_D.mean() ** 2
    return {
        "per_token_ratio": 1 - (ratio / n).item(),
        "about_zero": 1 - (error / square).item(),
        "scalar_mean": 1 - (error / about_scalar).item(),
        "centred_residual": 1 - ((error - residual_D.square().sum() / n) / known.spread).item(),
    }


def evaluated(
    source: Source, site: Site, vectors: Vectors, tokens: int, splice_rows: int
) -> tuple[Measurement, dict[tuple[str, str, str], float]]:
    """The evaluation of the very vectors, and {(codec, metric, position0): its value in closed form}.

    The mean is that without position 0, so that with it its error is the spread and n share^2 |m0 - m1|^2.
    """
    known, moments = Known.of(vectors), Moments()
    for part in chunks(vectors.take(~vectors.first_N)):
        moments.update(part.x_ND)
    k = max(1, site.width // 4)
    prefix = pca(moments, k, "prefix").to(source.model.device)
    values_D = torch.linalg.eigvalsh(moments.covariance_DD)
    first_D, rest_D = (mean_D.float().to(source.model.device) for mean_D in (known.first_D, known.rest_D))
    entry = Entry(site, "pca_prefix", "baseline", k, None, prefix, "pca_prefix")
    measured = measure(
        source.model, source.text.test, [entry], {site: references(first_D, rest_D)}, [],
        tokens=whole_rows(source, tokens), splice_tokens=splice_rows * source.text.context, value_bits=[],
        seed=source.seed,
    )  # fmt: skip
    expected: dict[tuple[str, str, str], float] = {
        ("mean", "ev", "excluded"): 0.0,
        ("mean", "ev", "included"): -(known.share**2) * known.gap,
        ("position0", "ev", "excluded"): 0.0,
        ("position0", "ev", "included"): known.between,
        ("pca_prefix", "ev", "excluded"): (values_D[-k:].sum() / values_D.sum()).item(),
    }
    nothing = {
        "ev": 1.0,
        "l2_ratio": 1.0,
        "dce": 0.0,
        "kl": 0.0,
        "loss_recovered_zero": 1.0,
        "loss_recovered_mean": 1.0,
    }
    for position0 in ("excluded", "included"):
        expected |= {("identity", metric, position0): value for metric, value in nothing.items()}
        expected["mean", "loss_recovered_mean", position0] = 0.0
    return measured, expected


def compared(measured: Measurement, expected: dict[tuple[str, str, str], float]) -> Iterator[dict]:
    ones = torch.ones(1, measured.documents, dtype=torch.float64)
    for (codec, metric, position0), value in expected.items():
        statistics = measured.statistics(the(codec, measured), position0)
        found = statistics["fvu" if metric == "ev" else metric](ones).item()
        row = {"codec": codec, "metric": metric, "position0": position0, "expected": value}
        spliced = metric not in ("ev", "l2_ratio")
        row["tokens"] = measured.splice_tokens if spliced else measured.tokens
        yield row | {"observed": 1 - found if metric == "ev" else found}


def knows_position0(measured: Measurement, seed: int) -> tuple[float, Tensor]:
    """(explained variance of the position-0 codec, its bootstrap over documents)."""
    fvu = measured.statistics(the("position0", measured), "included")["fvu"]
    ones = torch.ones(1, measured.documents, dtype=torch.float64)
    return 1 - fvu(ones).item(), 1 - fvu(resamples(measured.documents, DRAWS, seed))


def the(method: str, measured: Measurement) -> Entry:
    """The entry of a method, at the one site that was measured."""
    return next(entry for entry in measured.entries if entry.method == method)


def figure(table: pd.DataFrame) -> str:
    """Explained variance of each codec by our definition and by the faulty ones, the expected value a bar."""
    shown = table[(table["metric"] == "ev") & table[FAULTY[0]].notna()]
    groups = list(shown.groupby(["site", "position0"], sort=False))
    with panels(len(groups), 2.6) as (axes, svg):
        for one, ((site, position0), here) in zip(axes, groups, strict=True):
            means = here.groupby("codec", sort=False)[["expected", "observed", *FAULTY]].mean()
            places = range(len(means))
            one.bar(places, means["expected"], color="#dddddd", label="expected")
            one.plot(places, means["observed"], "o", color=COLOURS["rays"], label="rayscope")
            for name, marker in zip(FAULTY, MARKERS, strict=False):
                values = means[name].clip(lower=-1.5)
                one.plot(places, values, marker, color=COLOURS["directions"], mfc="none", label=name.replace("_", " "))
            one.set_xticks(list(places), [label(name, 12) for name in means.index])
            one.set_ylabel("explained variance")
            one.set_title(f"{label(site)}, position 0 {position0}")
        return svg()
