"""Meter: what is summed of one codec over vectors, per document, so that any statistic of any resample follows.

N vectors, D site width, L latents, K number of active latents plus one, G documents, P places: later positions,
position 0.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

from rayscope.dictionaries import Codes
from rayscope.evaluation import metrics
from rayscope.evaluation.calibration import places
from rayscope.evaluation.codecs import Codec
from rayscope.streams.positions import VIEWS, counted
from rayscope.streams.stream import Vectors

Statistic = Callable[[Tensor], Tensor]  # weights_BG -> [B]


class Variance:
    """What the errors of every codec of some vectors are compared with, in each view of position 0."""

    def __init__(self, width: int, documents: int):
        self.of = {view: metrics.VarianceSums(width, documents) for view in VIEWS}

    def update(self, vectors: Vectors) -> None:
        """Their documents are numbered 0 .. G - 1."""
        vectors = vectors.to("cpu")
        self.of["included"].update(vectors.target_ND, vectors.documents_N)
        later = vectors.take(~vectors.first_N)
        self.of["excluded"].update(later.target_ND, later.documents_N)


class Point:
    """Sums of one codec's errors at one number of bits per value, in each view, and of the loss and KL added by whoever
    splices it, in the views that are `spliced`.

    variance: of the same vectors, updated once for all points of a site.
    """

    def __init__(self, variance: Variance, spliced: Collection[str] = tuple(VIEWS)):
        documents = len(variance.of["included"].count_G)
        self.errors = {view: metrics.ErrorSums(variance.of[view]) for view in VIEWS}
        self.loss, self.kl = ({v: torch.zeros(documents, dtype=torch.float64) for v in spliced} for _ in range(2))

    def update(self, vectors: Vectors, x_hat_ND: Tensor) -> None:
        error_N, ratio_N = metrics.errors(vectors.target_ND, x_hat_ND)
        for view, sums in self.errors.items():
            kept_N = counted(vectors.first_N, view)
            sums.update(error_N[kept_N], ratio_N[kept_N], vectors.documents_N[kept_N])


class Meter:
    """What is summed of one codec: its codes once, and a Point for each of its value_bits.

    spliced: {value_bits: the views in which a point is spliced}; all views of every point, unless given.
    """

    def __init__(self, codec: Codec, variance: Variance, spliced: Mapping[int | None, Collection[str]] | None = None):
        self.codec, self.codes = codec, CodeSums(codec, len(variance.of["included"].count_G))
        self.points = {b: Point(variance, (spliced or {}).get(b, VIEWS)) for b in codec.value_bits}

    def at(self, value_bits: int | None) -> int | None:
        """value_bits, and for None the most of the codec's: so in all that follows here."""
        return self.codec.value_bits[-1] if value_bits is None else value_bits

    def point(self, value_bits: int | None = None) -> Point:
        return self.points[self.at(value_bits)]

    def reconstruct(self, vectors: Vectors) -> Iterator[tuple[Point, Tensor]]:
        """Each point and its x_hat_ND, once its errors are added. Documents are numbered 0 .. G - 1."""
        codes = self.codec.encode(vectors)
        self.codes.update(codes, vectors)
        for value_bits, point in self.points.items():
            x_hat_ND = self.codec.decode(codes, vectors, value_bits)
            point.update(vectors, x_hat_ND)
            yield point, x_hat_ND

    def update(self, vectors: Vectors) -> None:
        for _ in self.reconstruct(vectors):
            pass

    def statistics(self, view: str = "excluded", value_bits: int | None = None) -> dict[str, Statistic]:
        """{metric: weights_BG -> [B]}: fvu, l2_ratio, and of a codec with latents l0, density, bits_entropy."""
        errors, ratio = self.point(value_bits).errors[view], metrics.ratio_of_sums
        statistics = {"fvu": errors.fvu, "l2_ratio": errors.l2_ratio}
        if self.codec.latents:
            active_G, vectors_G = self.codes.active_G(view), self.codes.vectors_G(view)
            statistics |= {
                "l0": ratio(active_G, vectors_G),
                "density": ratio(active_G / self.codec.latents, vectors_G),
                "bits_entropy": ratio(self.codes.entropies[view, self.at(value_bits)], vectors_G),
            }
        return statistics

    def whole(self, view: str = "excluded", value_bits: int | None = None) -> dict[str, float]:
        """Of a codec with latents dead, bits and table_floats, of all documents together."""
        if not self.codec.latents:
            return {}
        dead = (self.codes.fired_L(view) == 0).double().mean().item()
        bits = self.codec.mean_bits(self.codes.counts(view), self.at(value_bits))
        return {"dead": dead, "bits": bits, "table_floats": self.codec.table_floats(self.at(value_bits))}


class SiteSums:
    """Of one site: a meter per codec, and in each view the loss with the site's activations at zero.

    spliced: by the name of a codec, see `Meter`.
    """

    def __init__(
        self,
        codecs: Mapping[str, Codec],
        width: int,
        documents: int,
        spliced: Mapping[str, Mapping[int | None, Collection[str]]],
    ):
        self.variance = Variance(width, documents)
        self.meters = {name: Meter(codec, self.variance, spliced.get(name)) for name, codec in codecs.items()}
        self.zero = {view: torch.zeros(documents, dtype=torch.float64) for view in VIEWS}


class CodeSums:
    """How many codes are non-zero, per document and per latent; how many vectors have each number of them; and the sum
    of bits_entropy per document at each of the codec's value_bits."""

    def __init__(self, codec: Codec, documents: int):
        self.codec = codec
        self.fired_PL = torch.zeros(2, codec.latents, dtype=torch.int64)
        self.counts_PK = torch.zeros(2, codec.latents + 1, dtype=torch.int64)
        self.active_PG, self.vectors_PG = torch.zeros(2, 2, documents, dtype=torch.int64)
        self.entropies = {
            (view, b): torch.zeros(documents, dtype=torch.float64) for view in VIEWS for b in codec.value_bits
        }

    def update(self, codes: Codes, vectors: Vectors) -> None:
        place_N, active_N = vectors.first_N.long(), codes.offsets.diff().cpu()
        self.fired_PL += places(codes, vectors.first_N).bincount(minlength=self.fired_PL.numel()).view(2, -1).cpu()
        counts_N = place_N * self.counts_PK.shape[1] + active_N
        self.counts_PK += counts_N.bincount(minlength=self.counts_PK.numel()).view(2, -1)
        documents_N = place_N * self.active_PG.shape[1] + vectors.documents_N
        self.active_PG.view(-1).index_add_(0, documents_N, active_N)
        self.vectors_PG += documents_N.bincount(minlength=self.vectors_PG.numel()).view(2, -1)
        for (view, value_bits), entropy_G in self.entropies.items():
            kept_N = counted(vectors.first_N, view)
            bits_N = self.codec.bits_entropy(codes, view, value_bits)
            entropy_G.index_add_(0, vectors.documents_N[kept_N], bits_N[kept_N])

    def fired_L(self, view: str) -> Tensor:
        return self.fired_PL[VIEWS[view]].sum(0)

    def counts(self, view: str) -> Tensor:
        """[K]: how many vectors have 0, 1, ... active latents."""
        return self.counts_PK[VIEWS[view]].sum(0)

    def active_G(self, view: str) -> Tensor:
        return self.active_PG[VIEWS[view]].sum(0).double()

    def vectors_G(self, view: str) -> Tensor:
        return self.vectors_PG[VIEWS[view]].sum(0).double()
