"""Token features: detection against brute force and scikit-learn, the choice, the probe, appearance, contexts."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
)

from coordinates import SITE, TOKENIZER, Coordinates, batches_of, splits_of, tokens_of
from rayscope.dictionaries import TokenBiasTopK
from rayscope.dictionaries.base import Codes
from rayscope.evaluation.entry import named_entries
from rayscope.features.appearance import appearance, beyond, bracket, with_appearance
from rayscope.features.contexts import top_contexts
from rayscope.features.detection import (
    Ranked,
    at_threshold,
    choose,
    columns,
    precision_at,
    scores_auroc,
    scores_thresholds,
)
from rayscope.features.probes import Probe, ProbeSums
from rayscope.features.token_features import COLUMNS, collect, token_features
from rayscope.features.tokens import Labels, choose_tokens
from rayscope.streams.windows import Window

pytestmark = pytest.mark.usefixtures("one_thread")


def text(n=640, vocabulary=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    stream = torch.randint(vocabulary, (n + 1,), generator=generator)
    return stream[1:], stream[:-1], torch.randn(n, 8, generator=generator)


@pytest.fixture(params=["rays", "directions", "full", "dense"])
def coded(request):
    """Random codes with many ties, some latents never active, and classes 0..3 of which 3 is any other token."""
    generator = torch.Generator().manual_seed(3)
    z_NL = torch.randint(-3, 4, (90, 12), generator=generator).float() / 2
    z_NL *= torch.rand(90, 12, generator=generator) < 0.5
    z_NL[:, 5] = 0
    z_NL[:, 6] = -z_NL[:, 6].abs()  # never positive
    if request.param == "rays":
        z_NL = z_NL.relu()
    if request.param == "full":  # not a zero in it, and one latent that is negative throughout
        z_NL = torch.where(z_NL == 0, 0.25, z_NL)
        z_NL[:, 6] -= 9
    if request.param == "dense":
        z_NL = torch.randn(90, 12, generator=generator)
    return z_NL, torch.randint(4, (90,), generator=generator)


def by_brute_force(z_N, positive_N):
    """The greatest balanced accuracy over every cut and the greatest threshold among the best."""
    values = np.unique(z_N)
    best, threshold = 0.5, values[-1]
    for low, high in pairwise(values):
        cut = 0.0 if low == 0 else (low + high) / 2
        accuracy = ((z_N > cut)[positive_N].mean() + (z_N <= cut)[~positive_N].mean()) / 2
        if accuracy > best + 1e-12 or (accuracy > best - 1e-12 and best > 0.5 and cut > threshold):
            best, threshold = accuracy, cut
    return best, threshold


def test_auroc_of_every_pair_equals_scikit_learn(coded):
    z_NL, classes_N = coded
    for sign in (1, -1):
        auroc_LT = Ranked(Codes.of_dense(z_NL), sign).auroc(classes_N, 3)
        for latent in range(12):
            for token in range(3):
                expected = roc_auc_score(classes_N == token, sign * z_NL[:, latent])
                assert auroc_LT[latent, token] == pytest.approx(expected, abs=1e-12)


def test_auroc_is_exact_for_many_vectors():
    """Sums of 20,000 ranks pass what float32 can hold."""
    generator = torch.Generator().manual_seed(0)
    z_N = torch.randn(20_000, generator=generator).relu()
    classes_N = torch.randint(2, (20_000,), generator=generator)
    found = Ranked(Codes.of_dense(z_N[:, None])).auroc(classes_N, 1).item()
    assert found == pytest.approx(roc_auc_score(classes_N == 0, z_N), abs=1e-12)


def test_best_cut_of_every_pair_equals_a_search_over_all_thresholds(coded):
    z_NL, classes_N = coded
    for sign in (1, -1):
        gain_LT, threshold_LT = Ranked(Codes.of_dense(z_NL), sign).best_cut(classes_N, 3)
        for latent in range(12):
            for token in range(3):
                positive_N = (classes_N == token).numpy()
                best, threshold = by_brute_force(sign * z_NL[:, latent].double().numpy(), positive_N)
                found = 0.5 + 0.5 * gain_LT[latent, token].item() / (positive_N.sum() * (~positive_N).sum())
                assert found == pytest.approx(best, abs=1e-12)
                assert threshold_LT[latent, token] == pytest.approx(threshold, abs=1e-12)


def test_scores_at_a_threshold_equal_scikit_learn(coded):
    z_NL, classes_N = coded
    scores_NT, threshold_T = z_NL[:, [0, 5, 6]], torch.tensor([0.25, -1.0, -1.0])
    reached = at_threshold(scores_NT, classes_N, threshold_T)
    for t in range(3):
        said, of_t = scores_NT[:, t] > threshold_T[t], classes_N == t
        assert reached.balanced_accuracy_T[t] == pytest.approx(balanced_accuracy_score(of_t, said))
        assert reached.f1_T[t] == pytest.approx(f1_score(of_t, said, zero_division=0))
        assert reached.recall_T[t] == pytest.approx(recall_score(of_t, said))
        precision = precision_score(of_t, said, zero_division=np.nan)
        assert reached.precision_T[t] == pytest.approx(precision, nan_ok=True)


@pytest.mark.parametrize("recall", [0.3, 0.8, 1.0])
def test_precision_at_a_recall_is_that_of_the_first_point_of_scikit_learns_curve_that_reaches_it(coded, recall):
    z_NL, classes_N = coded
    found_T = precision_at(recall, z_NL[:, [0, 5, 6]], classes_N)
    for t, latent in enumerate([0, 5, 6]):
        precisions, recalls, _ = precision_recall_curve(classes_N == t, z_NL[:, latent])
        first = np.flatnonzero(recalls >= recall - 1e-12)[-1]  # the curve's recall falls
        assert found_T[t] == pytest.approx(precisions[first])


def test_precision_at_a_recall_by_hand():
    """Five positives, of which .8 are four: the fourth best of column 0 scores 2, as does one other. Column 1 is silent
    on two of them, so that it must let in every vector."""
    z_NT = torch.tensor([[5.0, 1], [4, 1], [3, 1], [2, 0], [0, 0], [2, 0], [1, 0], [6, 0]])
    classes_N = torch.tensor([0, 0, 0, 0, 0, 2, 2, 2])
    assert precision_at(0.8, z_NT, classes_N).tolist()[0] == pytest.approx(4 / 6)
    assert precision_at(0.8, z_NT.flip(1), classes_N).tolist()[0] == pytest.approx(5 / 8)
    assert precision_at(0.6, z_NT.flip(1), classes_N).tolist()[0] == 1
    assert precision_at(0.8, z_NT, torch.full((8,), 2)).isnan().all()
    assert precision_at(0.8, z_NT, torch.zeros(8, dtype=torch.int64)).isnan().all()


def test_codes_without_an_entry_detect_nothing():
    ranked = Ranked(Codes.of_dense(torch.zeros(6, 2)))
    classes_N = torch.tensor([0, 0, 1, 1, 1, 1])
    assert torch.equal(ranked.auroc(classes_N, 1), torch.full((2, 1), 0.5).double())
    chosen = choose([ranked], classes_N, 1)
    assert (chosen.latents_T.item(), chosen.thresholds_T.item(), chosen.balanced_accuracy_T.item()) == (0, 0.0, 0.5)


def test_a_token_that_is_absent_or_everywhere_has_no_detector_and_no_score():
    ranked, classes_N = Ranked(Codes.of_dense(torch.eye(4))), torch.ones(4, dtype=torch.int64)
    assert ranked.auroc(classes_N, 2).isnan().all()
    assert not choose([ranked], classes_N, 2).found_T.any()
    reached = at_threshold(torch.eye(4)[:, :2], classes_N, torch.zeros(2))
    assert torch.stack([getattr(reached, f.name) for f in fields(reached)]).isnan().all()


def test_codes_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or inf"):
        Ranked(Codes.of_dense(torch.tensor([[1.0, torch.nan]])))


def test_signs_are_chosen_for_directions_and_not_for_rays():
    z_NL = torch.tensor([[-2.0, 0.1], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.1]])
    classes_N = torch.tensor([0, 0, 1, 1, 1])
    codes = Codes.of_dense(z_NL)
    chosen = choose([Ranked(codes), Ranked(codes, -1)], classes_N, 1)
    assert (chosen.latents_T.item(), chosen.signs_T.item(), chosen.thresholds_T.item()) == (0, -1, 0.0)
    assert chosen.balanced_accuracy_T.item() == 1
    ray = choose([Ranked(codes)], classes_N, 1)
    assert (ray.latents_T.item(), ray.signs_T.item()) == (1, 1)


def test_the_choice_is_by_the_best_threshold_and_ties_go_to_the_lower_latent():
    """Latent 1 has AUROC .92 and .8 at its best threshold; latents 2 and 3 have .9 and .9."""
    best_rank_N = torch.tensor([5.0, 5, 5, 4, 3, 4, 3, 0, 0, 0])
    best_cut_N = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    z_NL, classes_N = torch.stack([0 * best_cut_N, best_rank_N, best_cut_N, best_cut_N], 1), torch.arange(10) // 5
    ranked = [Ranked(Codes.of_dense(z_NL))]
    assert ranked[0].auroc(classes_N, 1)[:, 0].tolist() == pytest.approx([0.5, 0.92, 0.9, 0.9])
    chosen = choose(ranked, classes_N, 1)
    assert (chosen.latents_T.item(), chosen.balanced_accuracy_T.item()) == (2, pytest.approx(0.9))


def test_columns_are_columns_of_the_dense_codes(coded):
    z_NL, _ = coded
    latents_T = torch.tensor([7, 0, 7, 11])
    assert torch.equal(columns(Codes.of_dense(z_NL), latents_T), z_NL[:, latents_T])


def test_tokens_are_the_most_frequent_and_then_evenly_spaced_in_log_rank():
    counts = np.array([5, 1000, 900, 0, *range(800, 300, -1)])
    tokens = choose_tokens(counts, 3, 4, min_count=301, exclude=[1])
    assert tokens.ids_T[:3].tolist() == [2, 4, 5]
    assert tokens.ranks_T.tolist() == [1, 2, 3, 4, 20, 100, 501]
    assert tokens.counts_T.tolist() == counts[tokens.ids_T].tolist()
    crowded = choose_tokens(np.arange(20, 10, -1), 2, 6, min_count=1)
    assert len(set(crowded.ids_T)) == 8
    assert crowded.ranks_T[[2, -1]].tolist() == [3, 10]
    assert choose_tokens(np.array([7, 7, 9]), 5, 5, min_count=1).ids_T.tolist() == [2, 0, 1]
    assert choose_tokens(np.array([7, 8, 9]), 1, 0, min_count=1).ids_T.tolist() == [2]


def test_a_token_too_rare_where_it_is_measured_keeps_its_rank_and_is_not_chosen():
    tokens = choose_tokens(np.array([9, 8, 7]), 3, 0, min_count=2, available=np.array([5, 1, 5]))
    assert tokens.ids_T.tolist() == [0, 2]
    assert tokens.ranks_T.tolist() == [1, 3]
    with pytest.raises(ValueError, match="min_count=50"):
        choose_tokens(np.array([9, 8]), min_count=50)


def test_classes_and_shuffled_labels():
    labels = Labels(torch.tensor([4, 9, 2, 9]), torch.tensor([9, 4, 9, 2]), torch.arange(4))
    assert labels.classes("current", tokens_of(9, 4)).tolist() == [1, 0, 2, 0]
    assert labels.classes("previous", tokens_of(9, 4)).tolist() == [0, 1, 0, 2]
    long = Labels(*torch.arange(100).repeat(3, 1))
    assert torch.equal(long.shuffled(1).current_N, long.shuffled(1).current_N)
    assert not torch.equal(long.shuffled(1).current_N, long.shuffled(2).current_N)
    assert torch.equal(long.shuffled(1).current_N.sort().values, long.current_N)


def test_collect_joins_what_the_batches_give():
    current_N, previous_N, x_ND = text(n=150)
    labels, codes = collect(batches_of(current_N, previous_N, x_ND), {SITE.key: {"rays": Coordinates(8)}})
    assert torch.equal(labels.current_N, current_N)
    assert torch.equal(labels.previous_N, previous_N)
    assert torch.equal(
        labels.positions_N, torch.cat([batch.positions_N for batch in batches_of(current_N, previous_N, x_ND)])
    )
    assert torch.equal(codes[SITE.key]["rays"].dense(), x_ND.relu())
    with pytest.raises(ValueError, match="no batch"):
        collect([], {})


def features(validation, test, signed=False, **options):
    entries = named_entries({SITE: {"d": Coordinates(8, signed)}})
    entries[0].dictionary.provenance["tokens"] = 70
    splits = [batches_of(*validation), batches_of(*test)]
    return token_features(entries, *splits, tokens_of(0, 1, 2), TOKENIZER, **options)


def row_of(table, dictionary="d", predicate="current", token=1, labels="real"):
    where = (table["dictionary"] == dictionary) & (table["predicate"] == predicate)
    rows = table[where & (table["token_id"] == token) & (table["labels"] == labels)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_planted_latent_is_found_and_shuffled_labels_are_at_chance():
    splits = []
    for seed in (1, 2):
        current_N, previous_N, x_ND = text(n=4000, seed=seed)
        x_ND[:, 4] = (current_N == 1).float() * (1 + torch.rand(4000))
        x_ND[:, 6] = -(previous_N == 2).float()
        splits.append((current_N, previous_N, x_ND))
    table = features(*splits, signed=True, seed=5)
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * 2 * 2 * 3  # dictionaries and the probe, labels, predicates, tokens
    current, previous = row_of(table), row_of(table, predicate="previous", token=2)
    assert (current["latent"], current["sign"], current["threshold"]) == (4, 1, 0)
    assert (previous["latent"], previous["sign"], previous["threshold"]) == (6, -1, 0)
    for row in (current, previous):
        assert row[["auroc", "balanced_accuracy", "f1"]].tolist() == [1, 1, 1]
    assert current["positives"] == int((splits[1][0] == 1).sum())
    assert current[["site", "token", "rank", "count", "split"]].tolist() == [SITE.hook, "<1>", 2, 100, "test"]
    assert current[["k", "latents", "tokens", "trained_tokens", "seed"]].tolist() == [8, 8, 4000, 70, 5]
    probe = row_of(table, "linear_probe")
    assert probe["auroc"] == pytest.approx(1, abs=1e-3)
    assert probe[["k", "latents", "latent", "sign", "trained_tokens", "appeared_by", "censored"]].isna().all()
    floor = table[table["labels"] == "shuffled"]
    assert (floor["auroc"] - 0.5).abs().max() < 0.05
    assert (floor["balanced_accuracy"] - 0.5).abs().max() < 0.05
    again = features(*splits, signed=True, seed=5)
    pd.testing.assert_frame_equal(table, again, check_exact=True)


def test_a_latent_is_chosen_by_validation_alone():
    validation, test = text(seed=1), text(seed=2)
    validation[2][:, 3] = (validation[0] == 1) * 2.0 + (torch.arange(640) % 9 == 0)  # good on validation, noise on test
    test[2][:, 5] = (test[0] == 1).float()  # perfect on test, noise on validation
    row = row_of(features(validation, test))
    assert row["latent"] == 3
    assert row["auroc"] < 0.6


def test_the_threshold_is_the_one_of_validation():
    """The latent is 1 or 2 by the token on validation and 2 or 3 on test: over 1.5 lies every test vector."""
    validation, test = text(seed=1), text(seed=2)
    for split, base in ((validation, 1.0), (test, 2.0)):
        split[2].zero_()
        split[2][:, 2] = base + (split[0] == 1)
    row = row_of(features(validation, test))
    assert row[["latent", "threshold", "auroc", "balanced_accuracy"]].tolist() == [2, 1.5, 1, 0.5]


def test_tokens_missing_from_a_split_leave_blanks():
    validation, test = text(seed=1), text(seed=2)
    validation[0][validation[0] == 0] = 5
    test[0][test[0] == 2] = 5
    table = features(validation, test)
    for dictionary in ("d", "linear_probe"):
        scores = ["threshold", "auroc", "balanced_accuracy", "f1", "latent"]
        assert row_of(table, dictionary, token=0)[scores].isna().all()
        assert row_of(table, dictionary, token=2)[["auroc", "balanced_accuracy", "f1"]].isna().all()
    assert row_of(table, token=2)["positives"] == 0


def test_batches_that_can_be_read_once_or_that_change_are_refused():
    parts = batches_of(*text())
    with pytest.raises(ValueError, match="validation batches can be read only once"):
        token_features([], iter(parts), parts, tokens_of(0), TOKENIZER)

    class Changing(list):
        def __iter__(self):
            yield self.pop()
            yield from list.__iter__(self)

    changing = Changing(parts)
    with pytest.raises(ValueError, match="must repeat exactly"):
        token_features(named_entries({SITE: {"d": Coordinates(8)}}), changing, parts, tokens_of(0), TOKENIZER)


def test_the_probe_is_the_linear_discriminant_and_beats_every_single_latent():
    """Token 1 moves coordinates 0 and 1 by what is small compared with their common noise."""
    splits = []
    for seed in (1, 2):
        current_N, previous_N, x_ND = text(n=4000, seed=seed)
        x_ND[:, 1] = x_ND[:, 0] + 0.3 * x_ND[:, 1]  # the difference of the two is clean
        x_ND[:, 0] += 0.5 * (current_N == 1)
        x_ND[:, 1] -= 0.5 * (current_N == 1)
        splits.append((current_N, previous_N, x_ND * 7 + 40))
    table = features(*splits, signed=True)
    latent, probe = row_of(table), row_of(table, "linear_probe")
    assert latent["auroc"] < 0.8
    assert probe["auroc"] > 0.98
    assert probe["balanced_accuracy"] > 0.93
    (seen_N, _, x_ND), (new_N, _, new_ND) = splits
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x_ND, seen_N == 1).decision_function(new_ND)
    assert probe["auroc"] == pytest.approx(roc_auc_score(new_N == 1, peer), abs=1e-3)


def test_left_out_scores_are_those_of_a_probe_whose_class_mean_misses_the_vector():
    generator = torch.Generator().manual_seed(0)
    x_ND, classes_N = torch.randn(60, 5, generator=generator) + 3, torch.randint(3, (60,), generator=generator)
    classes_N[7], classes_N[classes_N == 1] = 1, 2
    classes_N[7] = 1  # the only one of its class
    sums = ProbeSums(1, 2)
    for part in (slice(0, 25), slice(25, 60)):
        sums.add(x_ND[part], classes_N[None, part])
    probe = Probe(sums, ridge=0.1)
    centred_ND = (x_ND - x_ND.mean(0)).double()
    covariance_DD = centred_ND.T @ centred_ND / 60
    inverse_DD = torch.linalg.inv(covariance_DD + 0.1 * covariance_DD.diagonal().diag())
    plain_NT, left_out_NT = probe.scores(x_ND)[0], probe.scores_left_out(x_ND, classes_N[None])[0]
    members = (classes_N == 0).nonzero()[:, 0].tolist()
    expected_N = centred_ND @ inverse_DD @ centred_ND[members].mean(0)
    torch.testing.assert_close(plain_NT[:, 0].double(), expected_N, rtol=1e-4, atol=1e-4)
    for n in range(60):
        others = [m for m in members if m != n]
        expected = centred_ND[n] @ inverse_DD @ centred_ND[others].mean(0)
        assert left_out_NT[n, 0] == pytest.approx(expected.item(), abs=1e-4)
    assert left_out_NT[7, 1] == 0


def test_scores_of_columns_equal_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    scores_NT, classes_N = torch.randn(84, 20, generator=generator), torch.arange(84) % 21
    auroc_T, threshold_T = scores_auroc(scores_NT, classes_N), scores_thresholds(scores_NT, classes_N)
    for t in range(20):
        positive_N = (classes_N == t).numpy()
        assert auroc_T[t] == pytest.approx(roc_auc_score(positive_N, scores_NT[:, t]))
        _, threshold = by_brute_force(scores_NT[:, t].double().numpy(), positive_N)
        assert threshold_T[t] == pytest.approx(threshold)


def test_scores_of_columns_equal_those_of_ranked_codes(coded):
    """The same AUROC and thresholds from dense columns, with ties, zeros and a token that no vector has."""
    z_NL, classes_N = coded
    latents_T = [0, 5, 6, 2]
    ranked = Ranked(Codes.of_dense(z_NL))
    places = (torch.tensor(latents_T), torch.arange(4))
    classes_N = classes_N.masked_fill(classes_N == 3, 4)
    scores_NT = z_NL[:, latents_T]
    found_T, expected_T = scores_auroc(scores_NT, classes_N), ranked.auroc(classes_N, 4)[places]
    torch.testing.assert_close(found_T, expected_T, rtol=0, atol=1e-12, equal_nan=True)
    assert found_T[3].isnan()
    assert scores_thresholds(scores_NT, classes_N).equal(ranked.best_cut(classes_N, 4)[1][places])
    with pytest.raises(ValueError, match="scores hold NaN or inf"):
        scores_auroc(torch.full((3, 1), torch.nan), torch.zeros(3, dtype=torch.int64))


def test_brackets_by_hand():
    """Snapshots at 0, 10, 20, ... tokens; 1 where the token was found."""
    times = [0, 10, 20, 30, 40, 50, 60]
    for found, expected in {
        "0111111": (0, 10, False),
        "0011100": (10, 20, False),  # it goes again: it did appear
        "0110111": (30, 40, False),  # twice are not enough
        "0101010": (60, None, True),
        "0000011": (40, None, True),  # it may have appeared at 50: nobody saw a third
        "0111001": (0, 10, False),
        "0000001": (50, None, True),
        "0000000": (60, None, True),
    }.items():
        assert bracket(times, [mark == "1" for mark in found]) == expected, found
    assert bracket([0, 10, 20], [False, True, True]) == (0, None, True)  # fewer than three after the initial rows
    assert bracket([0], [False]) == (0, None, True)


def test_what_initial_rows_reach_is_taken_off():
    """.5 of the scale is what they reach, at least chance; 1 is perfect."""
    scores = np.array([0.4, 0.5, 0.8, 0.9, 0.96, 1.0])
    assert beyond(scores, np.full(6, 0.5)) == pytest.approx(scores)
    assert beyond(scores, np.full(6, 0.3)) == pytest.approx(scores)
    assert beyond(scores, np.full(6, 0.8)) == pytest.approx([-0.5, -0.25, 0.5, 0.75, 0.9, 1])
    assert beyond(scores, np.ones(6)).tolist() == [0.5] * 6


def test_appearance_is_a_bracket_beyond_what_the_initial_rows_detect():
    """Latent 2 is token 1 from 300 tokens on, latent 3 previous token 2 from 100 on but not at 200, and latent 4 is
    current token 0 in the initial rows."""
    splits = []
    for seed in (1, 2):
        current_N, previous_N, x_ND = text(seed=seed)
        x_ND.mul_(0.01)
        for latent, held_N in ((2, current_N == 1), (3, previous_N == 2), (4, current_N == 0)):
            x_ND[:, latent] = held_N.float()
        splits.append(batches_of(current_N, previous_N, x_ND))
    zeroed = {0: [2, 3], 100: [2], 200: [2, 3], 300: [], 400: [], 500: []}
    snapshots = [(n, {SITE.key: {"d": Coordinates(8, zeroed=off)}}) for n, off in zeroed.items()]
    appeared = appearance(snapshots, *splits, tokens_of(0, 1, 2))
    table = with_appearance(features(*(splits_of(split) for split in splits)), appeared)
    columns = ["appeared_after", "appeared_by", "censored"]
    assert row_of(table)[columns].tolist() == [200, 300, False]
    assert row_of(table, predicate="previous", token=2)[columns].tolist() == [200, 300, False]
    initial = row_of(table, token=0)
    assert (initial["found"], initial["appeared_after"], initial["censored"]) == (True, 500, True)
    assert pd.isna(initial["appeared_by"])
    late = with_appearance(table, appearance(snapshots[:5], *splits, tokens_of(0, 1, 2)))
    assert row_of(late)["appeared_after"] == 200  # found at 300 and at 400 alone
    assert row_of(late)["censored"]
    others = table[(table["labels"] != "real") | (table["dictionary"] != "d")]
    assert others[columns].isna().all(axis=None)
    unknown = with_appearance(table, appearance(snapshots[1:], *splits, tokens_of(0, 1, 2)))
    assert unknown[columns].isna().all(axis=None)  # without the initial rows there is nothing to compare with


def window(tokens_RC, x_RCD):
    return Window(tokens_RC, torch.zeros_like(tokens_RC), {SITE.key: x_RCD}, tuple(TOKENIZER.all_special_ids))


def test_top_contexts_show_the_strongest_positions_and_never_position_0_or_a_special_token():
    tokens_RC = torch.arange(20).view(2, 10)
    x_RCD = torch.zeros(2, 10, 8)
    x_RCD[0, 0, 3] = 99.0  # position 0
    x_RCD[0, 9, 3], x_RCD[1, 3, 3] = -98.0, -97.0  # special tokens
    x_RCD[0, 8, 3], x_RCD[1, 1, 3], x_RCD[1, 2, 3], x_RCD[1, 5, 3] = -2.0, -5.0, 1.0, -1.0
    row = {"site": SITE.hook, "dictionary": "d", "predicate": "current", "token": "<1>", "rank": 1, "labels": "real"}
    rows = [
        row | {"latent": 3, "sign": -1},
        row | {"latent": 7, "sign": 1, "predicate": "previous"},
        row | {"latent": 3, "sign": 1, "rank": 2, "token": "<2>"},
        row | {"latent": 1, "sign": 1, "labels": "shuffled"},
        row | {"latent": pd.NA, "dictionary": "linear_probe"},
    ]
    dictionaries = {SITE: {"d": Coordinates(8, signed=True), "unseen": Coordinates(8)}}
    windows = [window(t[None], x[None]) for t, x in zip(tokens_RC, x_RCD, strict=True)]
    found = top_contexts(pd.DataFrame(rows), windows, dictionaries, TOKENIZER, tokens=1, contexts=2, before=2, after=3)
    assert [(e["predicate"], e["token"], e["latent"], e["sign"]) for e in found] == [
        ("current", "<1>", 3, -1),
        ("previous", "<1>", 7, 1),
    ]
    assert found[0]["contexts"] == [
        {"tokens": ["<10>", "<11>", "<12>", "<13>", "<14>"], "activations": [0, 5, -1, 0, 0], "focus": 1},
        {"tokens": ["<6>", "<7>", "<8>", "<9>"], "activations": [0, 0, 2, 0], "focus": 2},
    ]
    assert found[1]["contexts"] == []


def test_codes_of_a_dictionary_that_knows_the_token_are_each_position_s():
    dictionary = TokenBiasTopK(8, 8, 1, vocabulary=20)
    with torch.no_grad():
        for W_LD in (dictionary.W_enc_LD, dictionary.W_dec_LD):
            W_LD.copy_(torch.eye(8))
        dictionary.B_VD[14, 3] = -5.0  # token 14 at the origin is 5 along direction 3 from where it is known to be
    tokens_RC = torch.arange(20).view(2, 10)
    row = {"site": SITE.hook, "dictionary": "d", "predicate": "current", "token": "<1>", "rank": 1, "labels": "real"}
    windows = [window(tokens_RC, torch.zeros(2, 10, 8))]
    table = pd.DataFrame([row | {"latent": 3, "sign": 1}])
    (entry,) = top_contexts(table, windows, {SITE: {"d": dictionary}}, TOKENIZER, before=1, after=1)
    assert entry["contexts"] == [{"tokens": ["<13>", "<14>", "<15>"], "activations": [0, 5, 0], "focus": 1}]

    stream = batches_of(torch.tensor([1, 14, 14, 2]), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 8), size=2)
    _, codes = collect(stream, {SITE.key: {"d": dictionary}})
    assert codes[SITE.key]["d"].dense()[:, 3].tolist() == [0, 5, 5, 0]
