"""What a detector of each token scores on test text: the columns of token_features.csv that are the same for latents,
components and probes.

N vectors, T tokens (a detector each), H hard negatives of a detector.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayscope.features.detection import at_threshold, positives, precision_at
from rayscope.features.hard_negatives import Candidates, fires_most, hard_auroc
from rayscope.features.tokens import Labels, Tokens

FOUND = 0.8  # a token is found if balanced accuracy and hard_auroc are greater
RECALL = 0.8  # of precision_at_80
PREDICATES = ("current", "previous")


@dataclass(frozen=True)
class Labelling:
    """The token that each vector of validation (seen) and of test (new) has by one predicate."""

    labels: str  # real or shuffled
    predicate: str
    seen: Labels
    new: Labels
    tokens: Tokens

    @cached_property
    def seen_N(self) -> Tensor:
        """Each vector's place among the T tokens, T for any other token."""
        return self.seen.classes(self.predicate, self.tokens)

    @cached_property
    def new_N(self) -> Tensor:
        return self.new.classes(self.predicate, self.tokens)

    @cached_property
    def candidates(self) -> Candidates:
        return Candidates.of(self.seen.ids(self.predicate), self.new.ids(self.predicate))


def labelled(seen: Labels, new: Labels, tokens: Tokens, labels: str = "real") -> list[Labelling]:
    return [Labelling(labels, predicate, seen, new, tokens) for predicate in PREDICATES]


def with_floor(seen: Labels, new: Labels, tokens: Tokens, seed: int) -> list[Labelling]:
    """Real labels before shuffled ones, which are permuted over each whole split."""
    shuffled = seen.shuffled(seed, "validation"), new.shuffled(seed, "test")
    return labelled(seen, new, tokens) + labelled(*shuffled, tokens, "shuffled")


def scores_on_test(
    labelling: Labelling, seen_NT: Tensor, new_NT: Tensor, thresholds_T: Tensor, auroc_T: Tensor, chosen_T: Tensor
) -> dict[str, Any]:
    """Columns, by name; hard_ids is (T, H). seen_NT, new_NT: scores on validation and on test.

    Hard negatives are chosen on validation; hard_auroc is the least of the AUROCs against each of them on test.
    chosen_T: False where no detector could be chosen: all is blank there.
    """
    ids_T = torch.from_numpy(np.asarray(labelling.tokens.ids_T))
    seen_ids_N, new_ids_N = (labels.ids(labelling.predicate) for labels in (labelling.seen, labelling.new))
    hard_TH = fires_most(seen_NT, thresholds_T, seen_ids_N, ids_T, labelling.candidates)
    hard_TH = hard_TH.masked_fill(~chosen_T[:, None], -1)
    reached = at_threshold(new_NT, labelling.new_N, thresholds_T)
    scores = {
        "threshold": thresholds_T,
        "auroc": auroc_T,
        "balanced_accuracy": reached.balanced_accuracy_T,
        "f1": reached.f1_T,
        "recall": reached.recall_T,
        "precision": reached.precision_T,
        "precision_at_80": precision_at(RECALL, new_NT, labelling.new_N),
        "hard_auroc": least(hard_auroc(new_NT, new_ids_N, ids_T, hard_TH)),
    }
    columns: dict[str, Any] = {name: value.where(chosen_T, torch.nan).numpy() for name, value in scores.items()}
    columns["found"] = found(columns["balanced_accuracy"], columns["hard_auroc"])
    columns["positives"] = positives(labelling.new_N, len(ids_T)).numpy()
    return columns | {"hard_ids": hard_TH}


def least(auroc_TH: Tensor) -> Tensor:
    """NaN without any."""
    least_T = auroc_TH.nan_to_num(torch.inf).amin(1)
    return least_T.where(least_T.isfinite(), torch.nan)


def found(balanced_accuracy_T: np.ndarray, hard_auroc_T: np.ndarray) -> list[bool | None]:
    """None where either is unknown."""
    return [None if np.isnan(least) else bool(least > FOUND) for least in np.minimum(balanced_accuracy_T, hard_auroc_T)]
