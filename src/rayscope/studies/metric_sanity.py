"""Are the metrics what they are said to be? Codecs whose numbers are known in closed form, on real activations.

R rows, C context, N vectors, D site width, G documents.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from rayscope import metrics
from rayscope.drawing import COLOURS, MARKERS, label, panels
from rayscope.splicing import Clean, keep_first
from rayscope.studies.study import Findings, Observed, Setting, over_seeds

FAULTY = ("per_token_ratio", "about_zero", "scalar_mean", "centred_residual")
COLUMNS = ["site", "seed", "codec", "metric", "position0", "tokens", "expected", "observed", "error", *FAULTY]
DRAWS = 1000


@dataclass(frozen=True)
class Vectors:
    """Activations of whole rows, flattened: x_ND, whether each stands at position 0, and its document (0 .. G - 1)."""

    x_ND: Tensor
    first_N: Tensor
    documents_N: Tensor

    @property
    def documents(self) -> int:
        return int(self.documents_N.max()) + 1

    def without_first(self) -> "Vectors":
        later_N = ~self.first_N
        return Vectors(self.x_ND[later_N], self.first_N[later_N], self.documents_N[later_N])


def metric_sanity(setting: Setting, *, tokens: int, splice_rows: int) -> Findings:
    """identity, mean, the codec that knows only position 0, half of the way from the mean, the same with a constant
    error; a hand case; invariance to scale and to batches; splices by the activation itself and by what it is ablated with.

    Observes `error`, the largest |observed - expected|, and `position0`, the explained variance, at the first residual
    site (at the first, where there is none) and position 0 included, of the codec that knows only whether a vector
    stands there.
    """
    rows, known = list(hand_cases()), []
    residual = next((site for site in setting.sites if "resid" in site.hook), setting.sites[0])
    for seed in setting.seeds:
        source = replace(setting.source, seed=seed)
        windows = list(source.windows("test", setting.sites, tokens))
        read_RC = windows[0][0][:splice_rows]  # one window's logits at a time fit in memory
        documents_N = torch.cat(
            [torch.full((t.shape[1],), i) for i, t in enumerate(row for w, _ in windows for row in w.split(1))]
        )
        for site in setting.sites:
            x_RCD = torch.cat([found[site.key].cpu() for _, found in windows])
            first_N = torch.zeros(x_RCD.shape[:2], dtype=torch.bool).index_fill_(1, torch.tensor([0]), True).flatten()
            vectors = Vectors(x_RCD.flatten(0, 1).double(), first_N, documents_N)
            about = {"site": site.hook, "seed": seed, "tokens": len(first_N)}
            rows += [about | row for row in explained(vectors)]
            rows += [about | {"tokens": read_RC.numel()} | row for row in spliced(setting, read_RC, site)]
            if site is residual:
                known.append(knows_position0(vectors, seed))
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    table["error"] = (table["observed"] - table["expected"]).abs()
    observed = {"error": Observed.exactly(table["error"].max()), "position0": over_seeds(known)}
    return Findings(table, observed, figure(table))


def hand_cases() -> Iterator[dict]:
    x, x_hat = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    yield {"codec": "hand case", "metric": "fvu", "expected": 0.2, "observed": metrics.fvu(x, x_hat)}
    yield {
        "codec": "hand case",
        "metric": "bits",
        "expected": 605.0,
        "observed": round(metrics.bits(24_576, 32, False)),
    }


def explained(vectors: Vectors) -> Iterator[dict]:
    """Explained variance, 1 - FVU, of every codec, with position 0 and without."""
    for position0, these in (("included", vectors), ("excluded", vectors.without_first())):
        x_ND = these.x_ND
        expected = known_values(these)
        for name, codec in codecs(these).items():
            x_hat_ND = codec(x_ND)
            row = {"codec": name, "metric": "ev", "position0": position0, "expected": expected[name]}
            yield row | {"observed": 1 - metrics.fvu(x_ND, x_hat_ND)} | faulty(x_ND, x_hat_ND)
        half_ND = codecs(these)["half"](x_ND)
        row = {"metric": "ev", "position0": position0, "expected": 0.75}
        yield row | {"codec": "half, x 1000", "observed": 1 - metrics.fvu(1000 * x_ND, 1000 * half_ND)}
        cut = sums_of(x_ND, half_ND, torch.zeros(len(x_ND), dtype=torch.long), 97)
        yield row | {"codec": "half, in batches of 97", "observed": 1 - cut.fvu(torch.ones(1, 1).double()).item()}


def sums_of(x_ND: Tensor, x_hat_ND: Tensor, documents_N: Tensor, batch: int = 4096) -> metrics.Sums:
    spread = metrics.Spread(x_ND.shape[1], int(documents_N.max()) + 1)
    sums = metrics.Sums(spread)
    for x, x_hat, documents in zip(x_ND.split(batch), x_hat_ND.split(batch), documents_N.split(batch), strict=True):
        spread.update(x, documents)
        sums.update(x, x_hat, documents)
    return sums


def codecs(vectors: Vectors) -> dict[str, Callable[[Tensor], Tensor]]:
    """They know the very vectors that they code, so that what they explain is known exactly."""
    x_ND, first_N = vectors.x_ND, vectors.first_N
    mean_D = x_ND.mean(0)
    offset_D = (x_ND - mean_D).square().sum(1).mean().sqrt() * torch.ones_like(mean_D) / len(mean_D) ** 0.5

    def position0(x_ND: Tensor) -> Tensor:
        rest_D = x_ND[~first_N].mean(0)
        return torch.where(first_N[:, None], x_ND[first_N].mean(0) if first_N.any() else rest_D, rest_D)

    return {
        "identity": lambda x: x,
        "mean": lambda x: mean_D.expand_as(x),
        "position0": position0,
        "half": lambda x: mean_D + (x - mean_D) / 2,
        "half, with a constant error": lambda x: mean_D + (x - mean_D) / 2 + offset_D / 2,
    }


def known_values(vectors: Vectors) -> dict[str, float]:
    """The explained variances in closed form. position0: n0 n1 / n^2 |m0 - m1|^2 over the total variance, between groups."""
    x_ND, first_N = vectors.x_ND, vectors.first_N
    share = first_N.double().mean().item()
    between = 0.0
    if 0 < share < 1:
        gap_D = x_ND[first_N].mean(0) - x_ND[~first_N].mean(0)
        between = share * (1 - share) * gap_D.square().sum().item() / x_ND.var(0, correction=0).sum().item()
    return {"identity": 1.0, "mean": 0.0, "position0": between, "half": 0.75, "half, with a constant error": 0.5}


def faulty(x_ND: Tensor, x_hat_ND: Tensor) -> dict[str, float]:
    """Explained variance as it is often computed: mean of per-token ratios; variance about zero; about one number for all
    dimensions; of the residual about its own mean, which hides a constant error."""
    error_N, spread_N = (x_ND - x_hat_ND).square().sum(1), (x_ND - x_ND.mean(0)).square().sum(1)
    residual_ND = x_ND - x_hat_ND
    return {
        "per_token_ratio": 1 - (error_N / spread_N).mean().item(),
        "about_zero": 1 - (error_N.sum() / x_ND.square().sum()).item(),
        "scalar_mean": 1 - (error_N.sum() / (x_ND - x_ND.mean()).square().sum()).item(),
        "centred_residual": 1 - ((residual_ND - residual_ND.mean(0)).square().sum() / spread_N.sum()).item(),
    }


def spliced(setting: Setting, tokens_RC: Tensor, site) -> Iterator[dict]:
    """The activation in its own place costs nothing; what ablates recovers nothing, and the activation everything."""
    clean = Clean.run(setting.source.model, tokens_RC, [site])
    x_RCD = clean.activations[site.key]
    mean_RCD = x_RCD[:, 1:].mean((0, 1)).expand_as(x_RCD)
    for position0, put in (("included", lambda x: x), ("excluded", lambda x: keep_first(x_RCD, x))):
        loss, kl = clean.spliced(site, put(x_RCD))
        row = {"position0": position0, "codec": "identity", "expected": 0.0}
        yield row | {"metric": "dce", "observed": (loss - clean.loss_RC).double().mean().item()}
        yield row | {"metric": "kl", "observed": kl.double().mean().item()}
        for ablation, x_hat in (("zero", torch.zeros_like(x_RCD)), ("mean", mean_RCD)):
            ablated = clean.spliced(site, put(x_hat))[0].double().mean().item()
            before = clean.loss_RC.double().mean().item()
            for codec, spliced_loss, expected in (("identity", before, 1.0), (f"{ablation} ablation", ablated, 0.0)):
                recovered = metrics.loss_recovered(ablated, spliced_loss, before)
                row = {"position0": position0, "codec": codec, "metric": f"loss_recovered_{ablation}"}
                yield row | {"expected": expected, "observed": recovered}


def knows_position0(vectors: Vectors, seed: int) -> tuple[float, Tensor]:
    """(explained variance of the position-0 codec, its bootstrap over rows of text)."""
    sums = sums_of(vectors.x_ND, codecs(vectors)["position0"](vectors.x_ND), vectors.documents_N)
    ones = torch.ones(1, vectors.documents, dtype=torch.float64)
    return 1 - sums.fvu(ones).item(), 1 - sums.fvu(metrics.bootstrap_weights(vectors.documents, DRAWS, seed))


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
