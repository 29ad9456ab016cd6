"""Measurement: what was summed of every codec at every site, and the tidy table that follows.

G documents, B draws of documents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rayscope.evaluation import metrics
from rayscope.evaluation.codecs import Codec
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.meter import Meter, SiteSums
from rayscope.evaluation.recalibration import calibrated_on
from rayscope.model.sites import Site
from rayscope.streams.positions import VIEWS
from rayscope.text import said

COLUMNS = [
    "site", "dictionary", "method", "family", "role", "kind", "k", "coder", "value_bits", "latents", "metric", "value",
    "low", "high", "position0", "split", "tokens", "trained_tokens", "seed", "documents", "text", "fitted_on",
    "calibrated_on",
]  # fmt: skip
METRICS = [
    "fvu", "dce", "kl", "loss_recovered_zero", "loss_recovered_mean", "l2_ratio", "l0", "density", "dead", "bits",
    "bits_entropy", "table_floats",
]  # fmt: skip
OF_CODES = ("l0", "density", "dead")  # as they are: the same at any number of bits per value
SPLICED = ("dce", "kl", "loss_recovered_zero", "loss_recovered_mean")  # on the first splice_tokens alone
WHOLE = ("k", "value_bits", "latents", "trained_tokens", "seed")  # whole numbers that may be blank


@dataclass(frozen=True)
class Measurement:
    """The sums of every codec of every site over the same documents: any statistic of any resample of them follows.

    entries: in the order of the table, the references of each site last. clean_G: the clean model's loss, summed over
    predicted_G predictions.
    """

    entries: Sequence[Entry]
    sites: Mapping[Site, SiteSums]
    clean_G: Tensor
    predicted_G: Tensor
    split: str
    tokens: int
    splice_tokens: int
    text: str = ""  # as tables call it

    @property
    def documents(self) -> int:
        return len(self.clean_G)

    @property
    def spliced_documents(self) -> int:
        """The number of documents of which a token was predicted."""
        return int((self.predicted_G > 0).sum())

    def meter(self, entry: Entry) -> Meter:
        return self.sites[entry.site].meters[entry.name]

    def statistics(
        self, entry: Entry, view: str = "excluded", value_bits: int | None = None
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """{metric: weights_BG -> [B]} over resamples of documents; value_bits: the most measured, unless given.

        Without dce and its like if this point was not spliced in this view.
        """
        sums, meter = self.sites[entry.site], self.meter(entry)
        point, statistics = meter.point(value_bits), meter.statistics(view, value_bits)
        if view not in point.loss:
            return statistics
        loss_G, zero_G, mean_G = point.loss[view], sums.zero[view], sums.meters["mean"].point().loss[view]
        return {
            **statistics,
            "dce": metrics.ratio_of_sums(loss_G - self.clean_G, self.predicted_G),
            "kl": metrics.ratio_of_sums(point.kl[view], self.predicted_G),
            "loss_recovered_zero": metrics.loss_recovered(zero_G, loss_G, self.clean_G),
            "loss_recovered_mean": metrics.loss_recovered(mean_G, loss_G, self.clean_G),
        }

    def table(self, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row per entry, number of bits per value, metric and view of position 0, blank if there is no such metric
        or it was not measured; metrics that are the same at any bits per value have one row, without them.

        Intervals are the central 95% over `draws` bootstraps of documents, blank for fewer documents than
        `metrics.interval` takes.
        """
        weights_BG = metrics.bootstrap_weights(self.documents, draws, seed)
        rows = [
            row
            for entry in self.entries
            for view in VIEWS
            for value_bits in self.meter(entry).codec.value_bits
            for row in self.rows_of(entry, view, value_bits, weights_BG)
        ]
        return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(WHOLE, "Int64"))

    def rows_of(self, entry: Entry, view: str, value_bits: int | None, weights_BG: Tensor) -> list[dict[str, Any]]:
        """documents: those that have a vector, of what is spliced those that have a prediction."""
        meter, statistics = self.meter(entry), self.statistics(entry, view, value_bits)
        ones, whole = torch.ones(1, self.documents, dtype=torch.float64), meter.whole(view, value_bits)
        with_vectors = int((meter.point().errors[view].variance.count_G > 0).sum())
        rows = []
        for metric in METRICS:
            if metric in OF_CODES and value_bits != meter.at(None):
                continue
            tokens, documents = self.tokens, with_vectors
            if metric in SPLICED:
                tokens, documents = self.splice_tokens, self.spliced_documents
            row = {"metric": metric, "position0": view, "split": self.split, "tokens": tokens, "documents": documents}
            row["value_bits"] = None if metric in OF_CODES else value_bits
            if metric in statistics:
                row["value"] = statistics[metric](ones).item()
                row["low"], row["high"] = metrics.interval(statistics[metric], weights_BG, documents)
            elif metric in whole:
                row["value"] = whole[metric]
            rows.append(described(entry, meter.codec) | {"text": self.text} | row)
        return rows

    def densities(self) -> pd.DataFrame:
        """site, dictionary, latent, density (position 0 excluded)."""
        columns, tables = ["site", "dictionary", "latent", "density"], []
        for entry in self.entries:
            codes, latents = self.meter(entry).codes, self.meter(entry).codec.latents
            if latents:
                density = (codes.fired_L("excluded").double() / codes.vectors_G("excluded").sum()).numpy()
                about = {"site": entry.site.hook, "dictionary": entry.name, "latent": range(latents)}
                tables.append(pd.DataFrame({**about, "density": density}))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def described(entry: Entry, codec: Codec) -> dict[str, Any]:
    """The columns that are the same in all of an entry's rows."""
    columns = {"site": entry.site.hook, "dictionary": entry.name, "method": entry.method, "family": entry.family}
    columns |= {"role": entry.role, "kind": codec.kind, "k": entry.k, "coder": entry.coder}
    return columns | {
        "latents": codec.latents or None,
        "seed": entry.seed,
        "trained_tokens": codec.provenance.get("tokens"),
        "fitted_on": said(codec.provenance.get("text")),
        "calibrated_on": calibrated_on(entry.dictionary) if codec.latents else "",
    }
