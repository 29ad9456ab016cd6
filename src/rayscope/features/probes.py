"""Linear probes in closed form: the ceiling that one latent's detection of a token is held against.

N vectors, D site width, T tokens, J labellings (real and shuffled labels of each predicate).
classes_JN: the place of each vector's token among the T, or T for any other token.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rayscope.streams.stream import Batch


class ProbeSums:
    """Sums over vectors for a probe: all of them, their products, and by class of J labellings of T tokens."""

    def __init__(self, labellings: int, tokens: int):
        self.shape, self.count = (labellings, tokens), 0

    def add(self, x_ND: Tensor, classes_JN: Tensor) -> None:
        """Sums of one batch in float32 about the first batch's mean, added up in float64."""
        if not self.count:
            (labellings, tokens), width = self.shape, x_ND.shape[1]
            self.shift_D = x_ND.mean(0)
            self.sum_D = torch.zeros(width, dtype=torch.float64)
            self.products_DD = torch.zeros(width, width, dtype=torch.float64)
            self.sums_JTD = torch.zeros(labellings, tokens, width, dtype=torch.float64)
            self.positives_JT = torch.zeros(labellings, tokens, dtype=torch.int64)
        x_ND = x_ND - self.shift_D
        member_JTN = classes_JN[:, None] == torch.arange(self.shape[1])[:, None]
        self.count += len(x_ND)
        self.sum_D += x_ND.sum(0).double().cpu()
        self.products_DD += (x_ND.T @ x_ND).double().cpu()
        self.sums_JTD += (member_JTN.to(x_ND) @ x_ND).double().cpu()
        self.positives_JT += member_JTN.sum(-1)


class Probe:
    """Fisher's discriminant of a token against the rest: w_v = (S + ridge diag S)^-1 (mu_v - mu), score (x - mu) . w_v.

    S is the covariance of all vectors: the within-class one gives the same direction (they differ by a rank-one term
    along mu_v - mu). The ridge is a share of each dimension's own variance, so that units do not matter.
    """

    def __init__(self, sums: ProbeSums, ridge: float = 1e-3):
        if sums.count < 2:
            raise ValueError(f"a probe was given {sums.count} vectors to fit; it needs thousands")
        mean_D = sums.sum_D / sums.count
        covariance_DD = sums.products_DD / sums.count - mean_D.outer(mean_D)
        variance_D = covariance_DD.diagonal().clone()
        floor = max(float(variance_D.max()) * 1e-9, 1e-30)
        covariance_DD.diagonal().add_((ridge * variance_D).clamp(min=floor))
        eye_DD = torch.eye(len(mean_D), dtype=torch.float64)
        whiten_DD = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance_DD), eye_DD, upper=False)
        counts_JT = sums.positives_JT
        offsets_JTD = sums.sums_JTD / counts_JT.clamp(min=1)[..., None] - mean_D * (counts_JT > 0)[..., None]
        self.mean_D = (sums.shift_D.double().cpu() + mean_D).float()
        self.whiten_DD = whiten_DD.float()
        self.means_JTD = (offsets_JTD @ whiten_DD.T).float()  # whitened class means
        self.weights_JTD = (offsets_JTD @ whiten_DD.T @ whiten_DD).float()
        self.positives_JT = counts_JT

    def scores(self, x_ND: Tensor) -> Tensor:
        """[J, N, T]"""
        return (x_ND - self.mean_D) @ self.weights_JTD.mT

    def scores_left_out(self, x_ND: Tensor, classes_JN: Tensor) -> Tensor:
        """[J, N, T] for the vectors of the fit: a positive is scored with the class mean of the n - 1 others,
        (n s - q)/(n - 1) with s its score and q = (x - mu) . S^-1 (x - mu); 0 if there are no others. Without this a
        rare token's own vectors stand q/n too high, and so would its threshold."""
        y_ND = (x_ND - self.mean_D) @ self.whiten_DD.T
        scores_JNT = y_ND @ self.means_JTD.mT
        labelling, row = (classes_JN < scores_JNT.shape[2]).nonzero(as_tuple=True)
        place = (labelling, row, classes_JN[labelling, row])
        n = self.positives_JT[labelling, place[2]]
        left_out = (n * scores_JNT[place] - y_ND.square().sum(1)[row]) / (n - 1).clamp(min=1)
        return scores_JNT.index_put_(place, left_out.where(n > 1, 0.0))


@torch.no_grad()
def fit_probes(batches: Iterable["Batch"], keys: Sequence[str], classes_JN: Tensor, tokens: int) -> dict[str, Probe]:
    """{site.key: Probe}, in one pass over the batches that the classes were taken from."""
    sums = {key: ProbeSums(len(classes_JN), tokens) for key in keys}
    for batch, part_JN in with_classes(batches, classes_JN):
        for key in keys:
            sums[key].add(batch.activations[key].float().cpu(), part_JN)
    return {key: Probe(sums.pop(key)) for key in keys}


@torch.no_grad()
def probe_scores(
    probes: dict[str, Probe], batches: Iterable["Batch"], classes_JN: Tensor, left_out: bool = False
) -> dict[str, Tensor]:
    """{site.key: scores_JNT}; left_out where the batches are those of the fit."""
    parts: dict[str, list[Tensor]] = {key: [] for key in probes}
    for batch, part_JN in with_classes(batches, classes_JN):
        for key, probe in probes.items():
            x_ND = batch.activations[key].float().cpu()
            parts[key].append(probe.scores_left_out(x_ND, part_JN) if left_out else probe.scores(x_ND))
    return {key: torch.cat(found, 1) for key, found in parts.items()}


def with_classes(batches: Iterable["Batch"], classes_JN: Tensor) -> Iterator[tuple["Batch", Tensor]]:
    """Each batch with its part of the labels. Raises ValueError where the batches are not those that were labelled."""
    start = 0
    for batch in batches:
        stop = start + len(batch.tokens_N)
        yield batch, classes_JN[:, start:stop]
        start = stop
    if start != classes_JN.shape[1]:
        raise ValueError(
            f"batches gave {classes_JN.shape[1]} vectors at first and {start} later; they must repeat exactly"
        )
