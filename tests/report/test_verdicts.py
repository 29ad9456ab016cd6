"""Verdicts on fronts, by hand."""

import math

import pandas as pd
import pytest

from rayscope.report.verdicts import answer, outcome_said, sentence, verdicts


def table(points: list[tuple], documents: float = 10, spread: float = 0.0) -> pd.DataFrame:
    """(role, family, method, coder, bits, fvu) of one site; dce is a tenth of fvu."""
    found = []
    for role, family, method, coder, bits, fvu in points:
        row = {"site": "s", "position0": "excluded", "role": role, "family": family, "method": method, "coder": coder}
        row |= {"bits": bits, "fvu_documents": documents, "dce_documents": documents}
        for metric, value in (("fvu", fvu), ("dce", fvu / 10)):
            row |= {metric: value, f"{metric}_low": value * (1 - spread), f"{metric}_high": value * (1 + spread)}
        found.append(row)
    return pd.DataFrame(found)


RAYS = [("rays", "topk", "topk", "own", 100.0, 0.4), ("rays", "topk", "topk", "own", 300.0, 0.2)]
PCA = [("baseline", "PCA", "pca_topk", "own", 100.0, 0.9), ("baseline", "PCA", "pca_topk", "own", 300.0, 0.5)]
TRANSFORM = [
    ("baseline", "PCA", "pca_transform", "own", 100.0, 0.6),
    ("baseline", "PCA", "pca_transform", "own", 300.0, 0.1),
]
KSVD = [("baseline", "K-SVD", "k_svd", coder, 200.0, fvu) for coder, fvu in (("own", 0.25), ("topk", 0.5))]


def of(found, **facts):
    (one,) = [v for v in found if all(getattr(v, name) == value for name, value in facts.items())]
    return one


def test_the_best_of_a_family_is_met_and_the_rate_of_the_change_is_said():
    """Rays .4 to .2, water-filled PCA .6 to .1 over 200 bits: level where .4 - t/1000 = .6 - 2.5 t/1000, t = 400/3."""
    found = verdicts(table(RAYS + PCA + TRANSFORM), rate=150)
    fvu = of(found, metric="fvu", family="PCA")
    assert fvu.contest.crossings() == [pytest.approx(100 + 400 / 3)]
    there = fvu.at(150)
    assert there is not None
    assert (there["best"], there["outcome"]) == ("pca_transform", "better")
    assert (there["ours"], there["theirs"]) == (pytest.approx(0.35), pytest.approx(0.475))
    assert outcome_said(fvu).startswith("lower up to 23")
    assert outcome_said(fvu).endswith("; level at 233 bits")
    assert sentence(fvu, 150).endswith("; at 150 bits 0.350 against 0.475 (pca_transform)")
    assert answer(found) == "In part: at some rates against PCA."


def test_against_the_weakest_alone_the_answer_would_be_another():
    assert answer(verdicts(table(RAYS + PCA))) == "Yes: at every rate against PCA."


def test_every_coder_of_a_family_stands_for_it():
    found = verdicts(table(RAYS + KSVD))
    fvu = of(found, metric="fvu", family="K-SVD")
    assert fvu.span == (200, 200)
    there = fvu.at(200)
    assert there is not None
    assert (there["best"], there["outcome"]) == ("k_svd", "worse")
    assert outcome_said(fvu) == "higher at 200 bits"
    assert answer(found) == "No: at no rate against K-SVD."


def test_a_family_is_met_without_the_others():
    found = verdicts(table(RAYS + PCA + KSVD))
    assert set(of(found, metric="fvu", family="PCA").contest.best_R) == {"pca_topk"}
    assert set(of(found, metric="fvu", family="K-SVD").contest.best_R) == {"k_svd"}


def test_each_coder_of_the_rays_has_a_verdict():
    by_omp = [(*point[:3], "omp", point[4], point[5] / 2) for point in RAYS]
    found = [v for v in verdicts(table(RAYS + by_omp + KSVD)) if v.metric == "dce"]
    assert [(v.coder, answer([v])) for v in found] == [
        ("own", "No: at no rate against K-SVD."),
        ("omp", "Yes: at every rate against K-SVD."),
    ]
    assert sentence(found[1]).startswith("dCE of topk by omp against K-SVD: lower at 200 bits")


def test_rays_against_directions_but_directions_not_against_themselves():
    signed = [
        ("directions", "abstopk", "abstopk", "own", 100.0, 0.5),
        ("directions", "abstopk", "abstopk", "own", 300.0, 0.2),
    ]
    found = verdicts(table(RAYS + signed + PCA))
    assert {(v.method, v.family) for v in found} == {("topk", "directions"), ("topk", "PCA"), ("abstopk", "PCA")}


def test_directions_are_met_under_the_coder_of_the_rays():
    """Directions are worse under their own encoder, and better than it under OMP."""
    points = RAYS + [(*point[:3], "omp", point[4], point[5] / 2) for point in RAYS]
    points += [
        ("directions", "abstopk", "abstopk", coder, bits, fvu)
        for coder, bits, fvu in (("own", 100.0, 0.5), ("own", 300.0, 0.3), ("omp", 100.0, 0.3), ("omp", 300.0, 0.15))
    ]
    found = [verdict for verdict in verdicts(table(points)) if verdict.metric == "fvu"]
    assert [(v.coder, set(v.contest.best_R)) for v in found] == [("own", {"abstopk"}), ("omp", {"abstopk by omp"})]
    assert answer(found) == "Yes: at every rate against directions."


def test_a_user_s_baseline_of_a_learned_method_s_name_stands_for_itself():
    mine = [("baseline", "topk", "topk", "own", 100.0, 0.1), ("baseline", "topk", "topk", "own", 300.0, 0.05)]
    assert answer(verdicts(table(RAYS + mine))) == "No: at no rate against topk."


def test_intervals_that_overlap_and_too_few_documents_claim_nothing():
    points = RAYS + [("baseline", "PCA", "pca_topk", "own", bits, fvu * 1.1) for *_, bits, fvu in RAYS]
    assert outcome_said(verdicts(table(points, spread=0.2))[0]) == "intervals overlap from 100 to 300 bits"
    few = verdicts(table(points, documents=2))
    assert answer(few) == "Not answered: too few documents (2; an interval needs 5)."
    assert outcome_said(few[0]) == "too few documents (2; an interval needs 5)"


def test_nothing_to_compare():
    assert answer(verdicts(table(RAYS))) == "Not answered: no rate in common with any other method."
    assert verdicts(table([*RAYS, ("baseline", "PCA", "pca_topk", "own", 1000.0, 0.1)])) == []
    assert verdicts(table(RAYS + PCA).assign(bits=math.nan)) == []
