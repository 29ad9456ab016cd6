"""Are the metrics what they are said to be? Codecs whose numbers are known in closed form, on real activations.

N vectors, D site width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from rayscope.baselines.pca import pca
from rayscope.dictionaries.code_length import bits
from rayscope.drawing import COLOURS, MARKERS, label, panels
from rayscope.evaluation import metrics
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.measurement import Means, Measurement, measure
from rayscope.model.sites import Site
from rayscope.streams import positions
from rayscope.streams.source import Source
from rayscope.streams.statistics import Moments
from rayscope.studies.study import Findings, Observed, Setting, over_seeds, resamples

FAULTY = ("per_token_ratio", "about_zero", "scalar_mean", "centred_residual")
COLUMNS = ["site", "seed", "by", "codec", "metric", "position0", "tokens", "expected", "observed", "error", *FAULTY]
DRAWS = 1000
CHUNK = 4096  # vectors in float64 at once
Codec = Callable[[Tensor, Tensor], Tensor]  # (x_ND, which are at position 0) -> x_hat_ND


def metric_sanity(setting: Setting, *, tokens: int, splice_rows: int) -> Findings:
    """A hand case. By the metrics alone: identity, mean, the codec that knows only position 0, half of the way from the mean,
    the same with a constant error; invariance to scale and to batches. By the whole evaluation, model and splices in it:
    identity, mean, position 0, and the first quarter of the vectors' own principal components.

    Observes `error`, the largest |observed - expected|, and `position0`, the explained variance, at the first residual
    site (at the first, where there is none) and position 0 included, of the codec that knows only whether a vector
    stands there.
    """
    for seed in setting.seeds:
        at_seed = replace(setting, source=replace(setting.source, seed=seed))
        at_seed.check_rows(tokens=tokens)
    rows, known = list(hand_cases()), []
    for seed in setting.seeds:
        source = replace(setting.source, seed=seed)
        for site in setting.sites:
            vectors = Vectors.read(source, site, tokens)
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


@dataclass(frozen=True)
class Vectors:
    """Activations of whole rows but for special tokens, and whether each stands at position 0."""

    x_ND: Tensor
    first_N: Tensor

    @classmethod
    def read(cls, source: Source, site: Site, tokens: int) -> "Vectors":
        x, first = [], []
        for tokens_RC, found in source.windows("test", [site], whole_rows(source, tokens)):
            coded_N = positions.coded(tokens_RC, source.model.special_ids).flatten()
            x.append(found[site.key].flatten(0, 1).cpu()[coded_N])
            first.append(positions.first(tokens_RC).flatten()[coded_N])
        return cls(torch.cat(x), torch.cat(first))

    def without_first(self) -> "Vectors":
        return Vectors(self.x_ND[~self.first_N], self.first_N[~self.first_N])

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[Tensor, Tensor]]:
        """(x_ND in float64, first_N)."""
        for x_ND, first_N in zip(self.x_ND.split(size), self.first_N.split(size), strict=True):
            yield x_ND.double(), first_N


def whole_rows(source: Source, tokens: int) -> int:
    """So many tokens that each reader of whole rows reads the same."""
    return max(1, tokens // source.text.context) * source.text.context


@dataclass(frozen=True)
class Known:
    """What explained variances follow from: means of all vectors, at position 0 and elsewhere; spread, sum |x - mean|^2;
    share, that of position 0."""

    mean_D: Tensor
    first_D: Tensor
    rest_D: Tensor
    spread: float
    vectors: int
    share: float

    @classmethod
    def of(cls, vectors: Vectors) -> "Known":
        by_place = metrics.Spread(vectors.x_ND.shape[1], 2)
        for x_ND, first_N in vectors.chunks():
            by_place.update(x_ND, first_N.long())
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


def codecs(known: Known) -> dict[str, tuple[Codec, float]]:
    """(codec, the explained variance of the vectors that it knows)."""
    width = len(known.mean_D)
    offset_D = (known.spread / known.vectors / width) ** 0.5 * torch.ones(width, dtype=torch.float64)

    def half(x_ND: Tensor, _: Tensor) -> Tensor:
        return known.mean_D + (x_ND - known.mean_D) / 2

    return {
        "identity": (lambda x, _: x, 1.0),
        "mean": (lambda x, _: known.mean_D.expand_as(x), 0.0),
        "position0": (lambda x, first: torch.where(first[:, None], known.first_D, known.rest_D), known.between),
        "half": (half, 0.75),
        "half, with a constant error": (lambda x, first: half(x, first) + offset_D / 2, 0.5),
    }


def explained(vectors: Vectors) -> Iterator[dict]:
    """Explained variance, 1 - FVU, of every codec, with position 0 and without."""
    for position0, these in (("included", vectors), ("excluded", vectors.without_first())):
        known = Known.of(these)
        made = codecs(known)
        for name, (codec, expected) in made.items():
            row = {"codec": name, "metric": "ev", "position0": position0, "expected": expected}
            yield row | {"observed": explained_variance(these, codec)} | faulty(these, codec, known)
        half = made["half"][0]
        row = {"metric": "ev", "position0": position0, "expected": 0.75}
        yield row | {"codec": "half, x 1000", "observed": explained_variance(these, half, scale=1000.0)}
        yield row | {"codec": "half, in batches of 97", "observed": explained_variance(these, half, batch=97)}


def explained_variance(vectors: Vectors, codec: Codec, batch: int = CHUNK, scale: float = 1.0) -> float:
    spread = metrics.Spread(vectors.x_ND.shape[1], 1)
    sums = metrics.Sums(spread)
    for x_ND, first_N in vectors.chunks(batch):
        nowhere_N = torch.zeros(len(x_ND), dtype=torch.long)
        spread.update(scale * x_ND, nowhere_N)
        sums.update(scale * x_ND, scale * codec(x_ND, first_N), nowhere_N)
    return 1 - sums.fvu(torch.ones(1, 1, dtype=torch.float64)).item()


def faulty(vectors: Vectors, codec: Codec, known: Known) -> dict[str, float]:
    """Explained variance as it is often computed: mean of per-token ratios; variance about zero; about one number for all
    dimensions; of the residual about its own mean, which hides a constant error."""
    ratio, error, square = torch.zeros(3, dtype=torch.float64)
    residual_D = torch.zeros_like(known.mean_D)
    for x_ND, first_N in vectors.chunks():
        residual_ND = x_ND - codec(x_ND, first_N)
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
    for x_ND, _ in vectors.without_first().chunks():
        moments.update(x_ND)
    k = max(1, site.width // 4)
    prefix = pca(moments, k, "prefix").to(source.model.device)
    values_D = torch.linalg.eigvalsh(moments.covariance_DD)
    means = Means(*(mean_D.float().to(source.model.device) for mean_D in (known.first_D, known.rest_D)))
    entry = Entry(site, "pca_prefix", "baseline", k, None, prefix, "pca_prefix")
    measured = measure(
        source.model, source.text.test, [entry], {site.key: means}, [],
        tokens=whole_rows(source, tokens), splice_tokens=splice_rows * source.text.context, quantise=False, seed=source.seed,
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
