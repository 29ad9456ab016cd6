"""Hard negatives: which tokens they are and the AUROC against them, by brute force, by hand, and in a planted case."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from coordinates import SITE, TOKENIZER, Coordinates, batches_of, tokens_of
from rayscope.evaluation.entry import named_entries
from rayscope.features.hard_negatives import HARD, Candidates, fires_most, hard_auroc
from rayscope.features.token_features import token_features

pytestmark = pytest.mark.usefixtures("one_thread")


def test_candidates_occur_often_enough_in_both_texts():
    seen_N, new_N = torch.tensor([7, 7, 3, 3, 3, 9, 9, 1]), torch.tensor([3, 3, 9, 7, 7, 7, 12, 12])
    candidates = Candidates.of(seen_N, new_N, occurrences=2)
    assert candidates.ids_C.tolist() == [3, 7]
    assert candidates.places(torch.tensor([3, 7, 9, 0, 12])).tolist() == [0, 1, 2, 2, 2]


def by_brute_force(scores_N, threshold, ids_N, own, candidates):
    """The five other candidates: yes most often, then the greatest mean, then the lowest id."""
    found = []
    for i in set(candidates.tolist()) - {own}:
        of_i = scores_N[ids_N == i].astype(np.float64)
        found.append((-(of_i > threshold).mean(), -of_i.mean(), i))
    return [i for _, _, i in sorted(found)[:HARD]]


@pytest.mark.parametrize("vocabulary", [4, 30])
def test_hard_negatives_and_their_auroc_equal_brute_force(vocabulary):
    """Scores in steps of a quarter, most of them 0, so that ties abound; with 4 tokens there are three others."""
    chance = np.random.default_rng(vocabulary)
    seen_N, new_N = chance.integers(0, vocabulary, (2, 900))
    tokens_T, threshold_T = np.array([2, 0, 3, 1]), np.array([0.0, 0.3, -1.0, 9.0])
    scores = (chance.integers(-4, 8, (2, 900, 4)) / 4 * (chance.random((2, 900, 4)) < 0.4)).astype(np.float32)
    candidates = Candidates.of(torch.tensor(seen_N), torch.tensor(new_N))
    assert len(candidates) == vocabulary
    given = torch.tensor(scores[0]), torch.tensor(threshold_T), torch.tensor(seen_N), torch.tensor(tokens_T)
    hard_TH = fires_most(*given, candidates)
    assert hard_TH.shape == (4, HARD)
    auroc_TH = hard_auroc(torch.tensor(scores[1]), torch.tensor(new_N), torch.tensor(tokens_T), hard_TH)
    for t, own in enumerate(tokens_T):
        expected = by_brute_force(scores[0][:, t], threshold_T[t], seen_N, own, candidates.ids_C.numpy())
        assert hard_TH[t].tolist() == expected + [-1] * (HARD - len(expected))
        for h, other in enumerate(expected):
            both = (new_N == own) | (new_N == other)
            area = roc_auc_score(new_N[both] == own, scores[1][both, t])
            assert auroc_TH[t, h] == pytest.approx(area, abs=1e-12)
        assert auroc_TH[t, len(expected) :].isnan().all()


def test_a_token_that_the_text_lacks_has_no_auroc():
    auroc_TH = hard_auroc(torch.rand(4, 2), torch.tensor([1, 1, 2, 2]), torch.tensor([1, 5]), torch.tensor([[2], [1]]))
    assert auroc_TH[0].isfinite().all()
    assert auroc_TH[1].isnan().all()


AND, OR, THE = 1, 2, 3


def conjunctions(seed, n=6000, vocabulary=20):
    """Latent 1 fires alike on AND and on OR, which are rare; latent 3 on THE alone; a direction tells AND from OR."""
    chance = torch.Generator().manual_seed(seed)
    weights = torch.tensor([1.0] * vocabulary)
    weights[[AND, OR]] = 0.4
    stream_N = torch.multinomial(weights, n + 1, replacement=True, generator=chance)
    current_N, previous_N = stream_N[1:], stream_N[:-1]
    x_ND = 0.05 * torch.randn(n, 8, generator=chance)
    both = (previous_N == AND) | (previous_N == OR)
    x_ND[:, 1] += both * (1 + 0.2 * torch.randn(n, generator=chance))
    x_ND[:, 3] += (previous_N == THE).float()
    x_ND[:, 5] -= 0.3 * (previous_N == OR)
    return current_N, previous_N, x_ND


class Thresholded(Coordinates):
    def encode_sparse(self, x_ND, tokens_N=None):
        return super().encode_sparse(x_ND * (x_ND.abs() > 0.35), tokens_N)


def test_a_latent_of_two_conjunctions_has_a_high_balanced_accuracy_and_is_not_found():
    splits = [batches_of(*conjunctions(seed)) for seed in (1, 2)]
    entries = named_entries({SITE: {"d": Thresholded(8)}})
    table = token_features(entries, *splits, tokens_of(AND, OR, THE), TOKENIZER)
    rows = table[(table["labels"] == "real") & (table["predicate"] == "previous")].set_index(["dictionary", "token_id"])
    conjunction, the, probe = rows.loc["d", AND], rows.loc["d", THE], rows.loc["linear_probe", AND]
    assert conjunction["latent"] == 1
    assert conjunction["balanced_accuracy"] > 0.95
    assert conjunction["auroc"] > 0.95
    assert conjunction["recall"] > 0.95
    assert conjunction["precision"] == pytest.approx(0.5, abs=0.1)
    assert conjunction["precision_at_80"] == pytest.approx(0.5, abs=0.1)
    assert conjunction["hard_auroc"] == pytest.approx(0.5, abs=0.1)
    assert conjunction["hard_ids"].split()[0] == str(OR)
    assert conjunction["hard_tokens"].split()[0] == f"'<{OR}>'"
    assert len(conjunction["hard_ids"].split()) == HARD
    assert [row["found"] for row in (conjunction, the, probe)] == [False, True, True]
    assert the[["precision", "precision_at_80", "hard_auroc"]].tolist() == [1, 1, 1]
    assert probe["hard_ids"].split()[0] == str(OR)
    assert probe["hard_auroc"] > 0.9
    floor = table[table["labels"] == "shuffled"]
    assert not floor["found"].any()
    assert floor["hard_auroc"].max() < 0.65
    assert (floor["precision_at_80"] < 1.5 * floor["positives"] / 6000).all()


def test_without_enough_occurrences_of_any_other_token_nothing_is_known():
    texts = [torch.tensor([0] * 30 + list(range(1, 9))) for _ in range(2)]
    splits = [batches_of(ids_N, ids_N, torch.rand(38, 8)) for ids_N in texts]
    table = token_features(named_entries({SITE: {"d": Coordinates(8)}}), *splits, tokens_of(0), TOKENIZER)
    assert table["hard_auroc"].isna().all()
    assert table["found"].isna().all()
    assert table["hard_ids"].eq("").all()
    assert isinstance(table["found"].dtype, pd.BooleanDtype)
