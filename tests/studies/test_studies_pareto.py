"""The study pareto: on a model made here, what its controls are, what is compared with what, what fits on a device."""

import json
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch

from rayscope.cli.command_line import main
from rayscope.dictionaries import BatchTopK, BottleneckTopK, Linear, TopK, load
from rayscope.evaluation.comparison import Comparison
from rayscope.evaluation.measurement import Measurement
from rayscope.model.sites import Site, resolve
from rayscope.pipeline import measure_compared
from rayscope.streams.source import Source
from rayscope.studies import arms, pareto
from rayscope.studies.pareto import amortisation, at_bits, figure, for_seeds, method_and_seed, ratio, seed_last

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = {"batchtopk", "matryoshka", "jumprelu", "gated", "l1", "tied_topk", "bottleneck_topk", "token_bias_topk"}
SIZES = {
    "seeds": [0, 1], "ks": [2, 4], "latents": 48, "lr": 0.05, "tokens": 1280, "fit_tokens": 1280, "sample": 400, "held_out": 640,
    "splice_tokens": 320, "validation_tokens": 320, "gap_tokens": 64,
}  # fmt: skip
SITE = "blocks.1.hook_resid_post"


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
    main(["study", "pareto", *arguments, f"out={out}"])
    return pd.read_csv(out / "table.csv"), json.loads((out / "verdict.json").read_text())


@pytest.fixture(scope="module")
def found(options, tmp_path_factory) -> tuple[Path, pd.DataFrame, dict]:
    """The study's folder, table and verdict."""
    folder = tmp_path_factory.mktemp("pareto") / "run"
    return folder, *run(*options, out=folder)


def test_what_fits_on_a_device_changes_nothing(found, options, tmp_path, monkeypatch):
    folder, table, _ = found
    measured: list[int] = []

    def counted(compared: Comparison, **sizes) -> Measurement:
        measured.append(sum(map(len, compared.all.values())))
        return measure_compared(compared, **sizes)

    monkeypatch.setattr(pareto, "measure_compared", counted)
    monkeypatch.setattr(arms, "LIMIT", 11 * 32 * 48 * 32)  # the training of eleven at a time, the weights of some forty
    again, _ = run(*options, out=tmp_path / "run")
    assert len(measured) > 1
    for where, groups in ((folder, ["0"]), (tmp_path / "run", ["0", "1", "2"])):
        assert sorted(path.name for path in (where / "arms").iterdir()) == groups
    pd.testing.assert_frame_equal(table, again)


def test_position0_is_left_out_and_is_there(found):
    _, both, _ = found
    fvu = both.set_index(["method", "position0"])["fvu"]
    assert fvu["position0", "included"] < fvu["mean", "included"] - 0.01  # this model's position 0 stands apart
    assert fvu["position0", "excluded"] == fvu["mean", "excluded"]
    assert figure(both) == figure(both[both["position0"] == "excluded"])
    assert set(both.loc[both["gap_omp"].notna(), "position0"]) == {"excluded"}


def test_every_method_is_there_with_every_seed(found):
    _, table, _ = found
    coded = table[(table["position0"] == "excluded") & table["bits"].notna()]
    seeded = {"ica", "ica_split", "semi_nmf", "k_means", "k_svd", "random"}
    unseeded = {"pca_prefix", "pca_topk", "pca_split", "svd_W_E", "svd_W_in", "svd_W_out", "neurons", "token_means"}
    wanted = {key: {0, 1} for key in seeded | {"rays", "directions", "frozen", "soft_frozen"}}
    wanted |= {key: set() for key in unseeded} | {key: {0} for key in KINDS}
    assert {method: set(rows["seed"].dropna()) for method, rows in coded.groupby("method")} == wanted
    assert set(coded["quantised"]) == {True}
    learned = coded[coded["method"].isin({"rays", "directions", "frozen", "soft_frozen"})]
    assert set(learned.groupby(["method", "seed"]).size()) == {len(SIZES["ks"])}
    assert dict(coded[coded["method"].isin(KINDS)].groupby("method").size()) == dict.fromkeys(KINDS, 1)
    gaps = table[table["gap_omp"].notna()].groupby("method").size()  # of k codes and no more
    assert dict(gaps) == {"rays": 4, "directions": 4, "frozen": 4, "soft_frozen": 4, "tied_topk": 1}
    assert table["gap_fista"].notna().sum() == 5  # each at the least k and first seed


def test_kinds_are_measured_at_their_own_bits(found):
    _, table, _ = found
    table = table[table["position0"] == "excluded"].set_index("method")
    budgets = set(table.loc["rays", "bits"])
    assert {kind for kind in KINDS if table.loc[kind, "bits"] == min(budgets)} == {"tied_topk", "token_bias_topk"}
    assert len(table.loc["pca_topk"]) == len(budgets) == 2
    assert table.loc["token_bias_topk", "role"] == "told"


def test_observed_are_ratios_to_the_rays_of_the_same_seed(found):
    _, table, verdict = found
    table = table[table["position0"] == "excluded"]
    sparse, best = {0: [], 1: []}, []
    for rays in table[table["method"] == "rays"].to_dict("records"):
        there = table[table["seed"].isna() | (table["seed"] == rays["seed"])]
        near = there[
            (there["bits"] >= rays["bits"]) & (there["bits"] < rays["bits"] + 20)
        ]  # a baseline never has fewer
        theirs = near[(near["role"] == "baseline") | (near["method"] == "random")].sort_values("bits")
        dce = theirs.groupby("method")["dce"].first()
        of = {m: v / rays["dce"] if rays["dce"] > 0 else 1000 * (v > 0) for m, v in dce.items()}
        sparse[rays["seed"]].append(of["pca_topk"])
        if rays["k"] == 2:
            assert {"ica", "k_svd", "random", "semi_nmf", "neurons", "svd_W_in"} <= set(of)
            best.append(min(of[m] for m in of if m != "token_means"))
    observed = {name: one["observed"] for name, one in verdict["predictions"].items()}
    assert observed["sparse_pca"] == pytest.approx(sum(map(min, sparse.values())) / 2, rel=1e-3)
    assert observed["best_fitted"] == pytest.approx(sum(best) / 2, rel=1e-3)


def test_controls_stay_where_they_start_or_near(found):
    """Rays do not: at this rate they leave the rows drawn."""
    folder, _, _ = found
    for k, seed in product((2, 4), (0, 1)):
        there = folder / "arms/0/dictionaries" / SITE.replace(".", "_")
        saved = {name: load(there / f"{name}_k{k}_s{seed}") for name in ("rays", "frozen", "soft_frozen")}
        drawn_LD = TopK(32, 48, k, seed=seed).directions.detach()
        cosine = {name: (d.directions.detach() * drawn_LD).sum(1) for name, d in saved.items()}
        torch.testing.assert_close(saved["frozen"].directions.detach(), drawn_LD)
        assert not torch.equal(saved["frozen"].bias, TopK(32, 48, k).bias)  # what is not frozen has learned
        assert 0.8 - 1e-4 < cosine["soft_frozen"].min() < 0.99
        assert cosine["rays"].min() < 0.79


def test_what_is_trained_together_fits(monkeypatch):
    narrow, wide = Site("blocks.0.hook_resid_post", 8, 0), Site("blocks.0.mlp.hook_post", 32, 0)
    names, one = ("a", "b", "c", "d", "e"), 32 * 100 * 8  # bytes that 100 latents of width 8 take
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
    made = {
        site: {name: Linear(site.width, 10, 1, "topk", torch.eye(10, site.width) + 1) for name in "ab"}
        for site in sites
    }
    monkeypatch.setattr(
        arms, "LIMIT", 2 * 4 * 8 * 11 + 4 * 32 * 11
    )  # directions and bias: both narrow ones and a wide one
    assert [{site.width: list(named) for site, named in part.items()} for part in arms.parts(made)] == [
        {8: ["a", "b"], 32: ["a"]}, {32: ["b"]},
    ]  # fmt: skip


def test_ratio_of_what_costs_nothing():
    theirs, mine = torch.tensor([3.0, 3.0, -1.0, -1.0, 0.0]), torch.tensor([2.0, -1.0, 2.0, -2.0, 0.0])
    assert ratio(theirs, mine).tolist() == [1.5, 1000.0, -0.5, 0.0, 0.0]  # two that cost nothing are no victory


def test_amortisation_gap_of_what_a_coder_can_recode(model, packed):
    source = Source(model, packed, batch_size=64, round_tokens=512)
    (site,) = resolve("blocks.1.hook_resid_post", model)
    kinds = {"rays": TopK, "batch": BatchTopK, "dense": BottleneckTopK}
    learned = {
        site: {
            name: kind(site.width, 40, 3, **({"rank": 4} if name == "dense" else {})) for name, kind in kinds.items()
        }
    }
    found = amortisation(Comparison(source, learned, learned, {}, 3), 128, 3, 0)
    assert set(found) == {(site, "rays")}  # the others spend other codes than a coder at their k would


def test_amortisation_gap_is_what_a_bad_encoder_loses(model, packed):
    source = Source(model, packed, batch_size=64, round_tokens=512)
    (site,) = resolve("blocks.1.hook_resid_post", model)
    bad = TopK(site.width, 40, 3)
    bad.prepare(source.stream("train", [site], 512)[0].activations[site.key], 1000)
    with torch.no_grad():
        bad.W_enc_LD.copy_(TopK(site.width, 40, 3, seed=1).W_enc_LD)  # of other directions
    learned: dict = {site: {"rays_k3_s0": bad, "rays_k3_s1": bad}}
    found = amortisation(Comparison(source, learned, learned, {}, 3), 128, 3, 0)
    gaps = found[site, "rays_k3_s0"]
    assert gaps["gap_omp"] > 0.2
    assert gaps["gap_fista"] > 0.2
    assert gaps["gap_tokens"] == 128
    assert found[site, "rays_k3_s1"] == {"gap_omp": gaps["gap_omp"], "gap_tokens": 128}


def test_a_baseline_is_read_at_the_bits_of_the_rays():
    named = {f"pca_k{k}": Linear(16, 16, k, "topk", torch.eye(16)) for k in (2, 3, 9)}
    three = named["pca_k3"].bits()
    assert at_bits("pca", named, three - 1, 0) == "pca_k3"
    assert at_bits("pca", named, three, 0) == "pca_k3"
    assert at_bits("pca", named, three + 1, 0) is None  # the next has far more
    assert at_bits("ica", named, three, 0) is None
    of_seeds = seed_last(
        {f"ica_s{seed}_k{k}": Linear(16, 16, k, "topk", torch.eye(16)) for k in (2, 3) for seed in (0, 12)}
    )
    assert at_bits("ica", of_seeds, three, 0) == "ica_k3_s0"
    assert at_bits("ica", of_seeds, three, 12) == "ica_k3_s12"
    assert at_bits("ica", of_seeds, three, 1) is None
    assert method_and_seed("k_svd_k9_s1") == ("k_svd", 1)
    assert method_and_seed("pca_split_k9") == ("pca_split", None)
    assert method_and_seed("mean") == ("mean", None)


def test_a_baseline_is_fitted_for_every_seed_that_its_fit_takes():
    def seeded(fit, seed: int = 7) -> Linear:
        dictionary = Linear(16, 16, 1, "topk", torch.eye(16))
        dictionary.provenance["seed"] = seed
        return dictionary

    entries = {
        "a": {"fit": seeded, "max_k": 1}, "b": {"fit": partial(seeded, seed=5)}, "c": {"fit": lambda fit: None, "budgets": "headline"},
    }  # fmt: skip
    found = for_seeds(entries, (0, 3))
    assert list(found) == ["a_s0", "a_s3", "b", "c"]
    assert [found[n].fit(None).provenance["seed"] for n in ("a_s0", "a_s3", "b")] == [0, 3, 5]  # type: ignore[union-attr, arg-type]
    assert [b.max_k for b in found.values()] == [1, 1, None, None]
    assert found["c"].budgets == "headline"
