"""The study pareto: on a model made here, what its controls are, what is compared with what, what fits on a device."""

import json
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from rayscope.baselines import SiteFit
from rayscope.cli.command_line import main
from rayscope.dictionaries import BatchTopK, BottleneckTopK, Linear, TokenBiasTopK, TopK, load
from rayscope.evaluation.comparison import Baseline, Comparison
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.fronts import Contest, Front
from rayscope.evaluation.measurement import Measurement
from rayscope.model.sites import Site, resolve
from rayscope.pipeline import measure_compared
from rayscope.streams.source import Source
from rayscope.studies import arms
from rayscope.studies.arms import Arm
from rayscope.studies.pareto import study
from rayscope.studies.pareto.amortisation import amortisation
from rayscope.studies.pareto.figure import figure
from rayscope.studies.pareto.ratios import at_bits, ratio

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = {"batchtopk", "matryoshka", "jumprelu", "gated", "l1", "tied_topk", "bottleneck_topk", "token_bias_topk"}
SIZES = {
    "seeds": [0, 1], "ks": [2, 4], "latents": 48, "lr": 0.05, "tokens": 1280, "fit_tokens": 1280, "sample": 400,
    "held_out": 640,
    "splice_tokens": 320, "validation_tokens": 320, "gap_tokens": 64,
}  # fmt: skip
SITE = "blocks.1.hook_resid_post"
LARGE = SIZES["tokens"]
ARMS = f"budgets/{LARGE}/arms"


@pytest.fixture(scope="module")
def options(tiny_gpt2, text_file) -> list[str]:
    sizes = ",".join(f"{key}:{value}" for key, value in SIZES.items()).replace(" ", "")
    return [
        "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files", f"text.files={text_file}",
        "stream.batch_size=64", "stream.round_tokens=512", "threads=1", f"sites.patterns=[{SITE}]",
        f"study.sizes.demo={{{sizes}}}", "study.effort.demo.iterations=2",
        "study.run.baselines.ica.fit.components=16", "study.run.baselines.ica_split.fit.components=16",
    ]  # fmt: skip


def run(*arguments: str, out: Path) -> tuple[pd.DataFrame, dict]:
    """The rows of all tokens, not of a third, and the verdict."""
    main(["study", "pareto", *arguments, f"out={out}"])
    table = pd.read_csv(out / "table.csv")
    assert sorted(table["budget"].unique()) == [LARGE // 3, LARGE]
    return table[table["budget"] == LARGE], json.loads((out / "verdict.json").read_text())


@pytest.fixture(scope="module")
def found(options, tmp_path_factory) -> tuple[Path, pd.DataFrame, dict]:
    """The study's folder, table and verdict."""
    folder = tmp_path_factory.mktemp("pareto") / "run"
    return folder, *run(*options, out=folder)


@pytest.mark.slow
def test_what_fits_on_a_device_changes_nothing(found, options, tmp_path, monkeypatch):
    folder, table, _ = found
    measured: list[int] = []

    def counted(compared: Comparison, **sizes) -> Measurement:
        measured.append(len(compared.entries))
        return measure_compared(compared, **sizes)

    monkeypatch.setattr(study, "measure_compared", counted)
    monkeypatch.setattr(arms, "LIMIT", 11 * 32 * 48 * 32)  # the training of eleven at a time, the weights of some forty
    again, _ = run(*options, out=tmp_path / "run")
    assert len(measured) > 1
    whole, cut = ["seed0_0", "seed1_0"], ["seed0_0", "seed0_1", "seed1_0"]
    for where, groups in ((folder, whole), (tmp_path / "run", cut)):
        assert sorted(path.name for path in (where / ARMS).iterdir()) == groups
    pd.testing.assert_frame_equal(table, again)


@pytest.mark.slow
def test_position0_is_left_out_and_is_there(found):
    _, both, _ = found
    fvu = both.set_index(["method", "position0"])["fvu"]
    assert fvu["position0", "included"] < fvu["mean", "included"] - 0.01  # this model's position 0 stands apart
    assert fvu["position0", "excluded"] == fvu["mean", "excluded"]
    assert figure(both) == figure(both[both["position0"] == "excluded"])
    assert set(both.loc[both["gap_omp"].notna(), "position0"]) == {"excluded"}


@pytest.mark.slow
def test_every_method_is_there_with_every_seed(found):
    _, table, _ = found
    coded = table[(table["position0"] == "excluded") & table["bits"].notna()]
    seeded = {"ica", "ica_split", "semi_nmf", "k_means", "k_svd", "random"}
    unseeded = {
        "pca_prefix",
        "pca_topk",
        "pca_transform",
        "pca_split",
        "svd_W_E",
        "svd_W_in",
        "svd_W_out",
        "neurons",
        "token_means",
    }
    wanted = {key: {0, 1} for key in seeded | {"rays", "directions", "frozen", "soft_frozen"}}
    wanted |= {key: set() for key in unseeded} | {key: {0} for key in KINDS}
    assert {method: set(rows["seed"].dropna()) for method, rows in coded.groupby("method")} == wanted
    assert set(coded["value_bits"].dropna()) == {1, 2, 3, 4, 6, 8}
    coded = coded[coded["value_bits"] == 8]
    learned = coded[coded["method"].isin({"rays", "directions", "frozen", "soft_frozen"})]
    assert set(learned.groupby(["method", "coder", "seed"]).size()) == {len(SIZES["ks"])}
    assert set(learned["coder"]) == {"own", "omp"}
    kinds = coded[coded["method"].isin(KINDS)].groupby(["method", "coder"]).size()
    assert dict(kinds) == {(kind, coder): 1 for kind in KINDS for coder in ("own", "omp")}
    assert set(coded.loc[coded["role"] == "baseline", "coder"]) == {"own"}  # OMP is theirs, or changes nothing
    gaps = table[table["gap_omp"].notna()].groupby("method").size()
    of_seeds = dict.fromkeys(["rays", "directions", "frozen", "soft_frozen"], 4)
    assert dict(gaps) == of_seeds | dict.fromkeys(KINDS, 1)
    assert table["gap_fista"].notna().sum() == 4 + len(KINDS)  # each at the least k and first seed


def test_a_study_without_own_codes_is_refused(options, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(*options, "study.run.coders=[omp]", out=tmp_path / "run")
    said = "study.run.coders=[omp]: add own, of which the predictions are"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_kinds_are_measured_at_their_own_bits(found):
    _, table, _ = found
    table = table[(table["position0"] == "excluded") & (table["coder"] == "own") & (table["value_bits"] == 8)]
    table = table.set_index("method")
    budgets = set(table.loc["rays", "bits"])
    assert {kind for kind in KINDS if table.loc[kind, "bits"] == min(budgets)} == {"tied_topk", "token_bias_topk"}
    assert len(table.loc["pca_topk"]) == len(budgets) == 2
    assert table.loc["token_bias_topk", "role"] == "told"


def test_observed_are_ratios_to_the_rays_of_the_same_seed(found):
    _, table, verdict = found
    table = table[(table["position0"] == "excluded") & (table["value_bits"] == 8)]
    coded, table = table[(table["method"] == "rays") & (table["coder"] == "omp")], table[table["coder"] == "own"]
    sparse, by_omp, best = {0: [], 1: []}, {0: [], 1: []}, []
    for rays in table[table["method"] == "rays"].to_dict("records"):
        there = table[table["seed"].isna() | (table["seed"] == rays["seed"])]
        near = there[
            (there["bits"] >= rays["bits"]) & (there["bits"] < rays["bits"] + 20)
        ]  # a baseline never has fewer
        theirs = near[(near["role"] == "baseline") | (near["method"] == "random")].sort_values("bits")
        dce = theirs.groupby("method")["dce"].first()
        of = {m: v / rays["dce"] if rays["dce"] > 0 else 1000 * (v > 0) for m, v in dce.items()}
        sparse[rays["seed"]].append(of["pca_topk"])
        again = coded[(coded["seed"] == rays["seed"]) & (coded["k"] == rays["k"])]["dce"].item()
        by_omp[rays["seed"]].append(dce["pca_topk"] / again if again > 0 else 1000 * (dce["pca_topk"] > 0))
        if rays["k"] == 2:
            assert {"ica", "k_svd", "random", "semi_nmf", "neurons", "svd_W_in"} <= set(of)
            best.append(min(of[m] for m in of if m != "token_means"))
    observed = {name: one["observed"] for name, one in verdict["predictions"].items()}
    assert observed["sparse_pca"] == pytest.approx(sum(map(min, sparse.values())) / 2, rel=1e-3)
    assert observed["sparse_pca_omp"] == pytest.approx(sum(map(min, by_omp.values())) / 2, rel=1e-3)
    assert observed["best_fitted"] == pytest.approx(sum(best) / 2, rel=1e-3)


@pytest.mark.parametrize(("coder", "name"), [("own", ""), ("omp", "_omp")])
def test_rays_and_the_best_pca_are_read_on_fronts(found, coder, name):
    _, table, verdict = found
    table = table[(table["position0"] == "excluded") & table["dce"].notna()]
    rate = TopK(32, 48, 2).bits(value_bits=4)
    ratios, levels = [], []
    for seed in (0, 1):
        of_rays = (table["method"] == "rays") & (table["coder"] == coder) & (table["seed"] == seed)
        ours = Front.of(table.loc[of_rays, "bits"], table.loc[of_rays, "dce"])
        codes = table[table["family"] == "PCA"].groupby(["method", "coder"])
        rivals = {key: Front.of(mine["bits"], mine["dce"]) for key, mine in codes}
        assert set(rivals) == {(method, "own") for method in ("pca_prefix", "pca_topk", "pca_transform", "pca_split")}
        at = np.array([rate])
        theirs = np.nanmin([front.at(at).item() for front in rivals.values() if front])
        ratios.append(ratio(torch.tensor(theirs), torch.tensor(ours.at(at).item())).item())
        contest = Contest.of(ours, {str(key): front for key, front in rivals.items()}, [rate])
        dearer = np.flatnonzero(contest.ours_R > contest.theirs_R)
        levels.append(contest.rates_R[max(dearer[0] - 1, 0) if len(dearer) else -1])
    observed = {key: one["observed"] for key, one in verdict["predictions"].items()}
    assert observed[f"best_pca{name}"] == pytest.approx(np.mean(ratios), rel=1e-3)
    assert observed[f"level{name}"] == pytest.approx(np.mean(levels), rel=1e-3)


def test_controls_stay_where_they_start_or_near(found):
    """Rays do not: at this rate they leave the rows drawn."""
    folder, _, _ = found
    for k, seed in product((2, 4), (0, 1)):
        there = folder / ARMS / f"seed{seed}_0" / "dictionaries" / SITE.replace(".", "_")
        saved = {name: load(there / f"{name}_k{k}_s{seed}") for name in ("rays", "frozen", "soft_frozen")}
        drawn_LD = TopK(32, 48, k, seed=seed).directions.detach()
        cosine = {name: (d.directions.detach() * drawn_LD).sum(1) for name, d in saved.items()}
        torch.testing.assert_close(saved["frozen"].directions.detach(), drawn_LD)
        assert not torch.equal(saved["frozen"].bias, TopK(32, 48, k).bias)  # what is not frozen has learned
        assert 0.8 - 1e-4 < cosine["soft_frozen"].min() < 0.99
        assert cosine["rays"].min() < 0.79


def test_what_is_trained_together_fits(monkeypatch):
    narrow, wide = Site("blocks.0.hook_resid_post", 8, 0), Site("blocks.0.mlp.hook_post", 32, 0)
    names, one = tuple("abcde"), 32 * 100 * 8  # bytes that 100 latents of width 8 take
    monkeypatch.setattr(arms, "LIMIT", 25 * one)
    assert arms.groups((narrow, wide), names, 100) == [((narrow, wide), names)]
    monkeypatch.setattr(arms, "LIMIT", 25 * one - 1)
    assert arms.groups((narrow, wide), names, 100) == [((narrow,), names), ((wide,), names)]
    monkeypatch.setattr(arms, "LIMIT", 8 * one)
    assert arms.groups((narrow, wide), names, 100) == [
        ((narrow,), names), ((wide,), names[:2]), ((wide,), names[2:4]), ((wide,), names[4:]),
    ]  # fmt: skip
    monkeypatch.setattr(arms, "LIMIT", 1)
    assert len(arms.groups((narrow, wide), names, 100)) == 10  # one at a time is the least


def test_what_is_measured_together_fits(monkeypatch):
    sites = [Site("blocks.0.hook_resid_post", 8, 0), Site("blocks.0.mlp.hook_post", 32, 0)]
    entries = [
        Arm(method, 1, 0).entry(site, Linear(site.width, 10, 1, "topk", torch.eye(10, site.width) + 1))
        for site in sites
        for method in "ab"
    ]
    weights = 2 * 4 * 8 * 11 + 4 * 32 * 11  # directions and bias: both narrow ones and a wide one
    monkeypatch.setattr(arms, "LIMIT", weights)
    assert arms.parts(entries) == [entries[:3], entries[3:]]


def test_ratio_of_what_costs_nothing():
    theirs, mine = torch.tensor([3.0, 3.0, -1.0, -1.0, 0.0]), torch.tensor([2.0, -1.0, 2.0, -2.0, 0.0])
    assert ratio(theirs, mine).tolist() == [1.5, 1000.0, -0.5, 0.0, 0.0]  # two that cost nothing are no victory


def test_every_kind_has_an_amortisation_gap(model, packed):
    source = Source(model, packed, batch_size=64, round_tokens=512)
    (site,) = resolve("blocks.1.hook_resid_post", model)
    kinds = {"rays": TopK, "batch": BatchTopK, "dense": partial(BottleneckTopK, rank=4)}
    kinds["token"] = partial(TokenBiasTopK, vocabulary=model.vocabulary)
    train = source.stream("train", [site], 512)[0]
    learned = [Arm(method, 3, 0).entry(site, kind(site.width, 40, 3)) for method, kind in kinds.items()]
    for entry in learned:
        entry.dictionary.prepare(train.activations[site.key], 1000, tokens_N=train.tokens_N)
    found = amortisation(source, learned, 128, 3, 0)
    assert [entry.method for entry in found] == list(kinds)
    assert all(gaps["gap_omp"] > 0.02 for gaps in found.values())


def test_amortisation_gap_is_what_a_bad_encoder_loses(model, packed):
    source = Source(model, packed, batch_size=64, round_tokens=512)
    (site,) = resolve("blocks.1.hook_resid_post", model)
    bad = TopK(site.width, 40, 3)
    bad.prepare(source.stream("train", [site], 512)[0].activations[site.key], 1000)
    with torch.no_grad():
        bad.W_enc_LD.copy_(TopK(site.width, 40, 3, seed=1).W_enc_LD)  # of other directions
    first, second = (Arm("rays", 3, seed).entry(site, bad) for seed in (0, 1))
    found = amortisation(source, [first, second], 128, 3, 0)
    assert found[first]["gap_omp"] > 0.2
    assert found[first]["gap_fista"] > 0.2
    assert found[first]["gap_tokens"] == 128
    assert found[second] == {"gap_omp": found[first]["gap_omp"], "gap_tokens": 128}


def of_method(method: str, *places: tuple[int, int | None]) -> dict[tuple[int, int | None], Entry]:
    """Entries of 16 directions at each (k, seed)."""
    site = Site("blocks.0.hook_resid_post", 16, 0)
    return {
        (k, seed): Entry(site, method, "baseline", k, seed, Linear(16, 16, k, "topk", torch.eye(16)), f"{k} {seed}")
        for k, seed in places
    }


def test_a_baseline_is_read_at_the_bits_of_the_rays():
    pca = of_method("pca", (2, None), (3, None), (9, None))
    three = pca[3, None].dictionary.bits()
    assert at_bits(pca.values(), "pca", three - 1, 0) is pca[3, None]
    assert at_bits(pca.values(), "pca", three, 0) is pca[3, None]
    assert at_bits(pca.values(), "pca", three + 1, 0) is None  # the next has far more
    assert at_bits(pca.values(), "ica", three, 0) is None


def test_a_baseline_is_read_with_the_seed_of_the_rays():
    ica = of_method("ica", (2, 0), (3, 0), (2, 12), (3, 12))
    three = ica[3, 0].dictionary.bits()
    entries = [*ica.values(), *of_method("pca_k9_s0", (3, 0)).values()]
    assert at_bits(entries, "ica", three, 0) is ica[3, 0]
    assert at_bits(entries, "ica", three, 12) is ica[3, 12]
    assert at_bits(entries, "ica", three, 1) is None
    once = of_method("ica", (3, 5))
    assert at_bits(once.values(), "ica", three, 0) is once[3, 5]  # fitted once, for every seed of the rays


def test_a_baseline_is_fitted_for_every_seed_that_its_fit_takes():
    def seeded(fit: SiteFit, seed: int = 7) -> Linear:
        dictionary = Linear(16, 16, 1, "topk", torch.eye(16))
        dictionary.provenance["seed"] = seed
        return dictionary

    given = [
        Baseline("a", seeded, max_k=1),
        Baseline("b", partial(seeded, seed=5)),
        Baseline("c", lambda fit: None, budgets="headline"),
    ]
    found = [one for baseline in given for one in baseline.for_seeds((0, 3))]
    assert [(one.method, one.seed) for one in found] == [("a", 0), ("a", 3), ("b", None), ("c", None)]
    assert [one.fit(None).provenance["seed"] for one in found[:3]] == [0, 3, 5]  # type: ignore[union-attr, arg-type]
    assert [one.max_k for one in found] == [1, 1, None, None]
    assert found[-1].budgets == "headline"
