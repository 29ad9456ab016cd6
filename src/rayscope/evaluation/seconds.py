"""Seconds that encoding takes, by dictionary: in a table of its own, as they differ from run to run."""

import time
from collections.abc import Hashable, Iterable

import pandas as pd
import torch

from rayscope.dictionaries import Codes, Dictionary
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.recoding import alike
from rayscope.model.sites import Site
from rayscope.records import cpu_model
from rayscope.streams.stream import Vectors

COLUMNS = ["site", "dictionary", "method", "k", "coder", "also", "seconds_per_1000", "vectors", "threads", "device"]


class Stopwatch:
    """Encodes, and keeps how long it took, by site and name."""

    def __init__(self):
        self.taken: dict[tuple[Site, Hashable], list[tuple[int, float]]] = {}

    def encode(self, site: Site, name: Hashable, dictionary: Dictionary, vectors: Vectors) -> Codes:
        cuda = vectors.x_ND.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        codes = vectors.encode(dictionary)
        if cuda:
            torch.cuda.synchronize()
        self.taken.setdefault((site, name), []).append((len(vectors.x_ND), time.perf_counter() - started))
        return codes

    def table(self, entries: Iterable[Entry]) -> pd.DataFrame:
        """seconds_per_1000: the median over batches of seconds per 1,000 vectors; vectors: of all batches.

        coder: as in the comparison; also: other coders that give the same codes. Blank where nothing was encoded.
        """
        rows = []
        for entry in entries:
            taken = self.taken.get((entry.site, entry.name), [])
            rates = pd.Series([1000 * seconds / vectors for vectors, seconds in taken if vectors], dtype=float)
            row = {"site": entry.site.hook, "dictionary": entry.name, "method": entry.method, "k": entry.k}
            row |= {"coder": entry.coder, "also": " ".join(alike(entry.dictionary))}
            row |= {"seconds_per_1000": rates.median(), "vectors": sum(vectors for vectors, _ in taken)}
            rows.append(row | {"threads": torch.get_num_threads(), "device": device_said(entry.dictionary.device)})
        return pd.DataFrame(rows, columns=COLUMNS)


def device_said(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
