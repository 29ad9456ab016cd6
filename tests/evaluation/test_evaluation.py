"""measure() against its metrics computed directly on activations gathered for the test."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from rayscope.dictionaries import BatchTopK, Dictionary, TokenBiasTopK, TopK
from rayscope.dictionaries.code_length import bits
from rayscope.dictionaries.linear import Linear
from rayscope.evaluation import metrics
from rayscope.evaluation.calibration import Calibration
from rayscope.evaluation.codecs import references
from rayscope.evaluation.entry import named_entries
from rayscope.evaluation.measure import check_options, measure
from rayscope.evaluation.quantisation import Quantiser
from rayscope.model import LanguageModel
from rayscope.model.sites import Site, resolve
from rayscope.model.splicing import CleanPass
from rayscope.pipeline import write_table
from rayscope.seeding import generator_of
from rayscope.streams.source import Source
from rayscope.text import PackedText

COLUMNS = [
    *("site", "dictionary", "method", "family", "role", "kind", "k", "coder", "value_bits", "latents", "metric"),
    *("value", "low", "high", "position0", "split", "tokens", "trained_tokens", "seed", "documents"),
    *("text", "fitted_on", "calibrated_on"),
]
METRICS = {
    "fvu",
    "l0",
    "dce",
    "kl",
    "loss_recovered_zero",
    "loss_recovered_mean",
    "density",
    "dead",
    "bits",
    "bits_entropy",
    "table_floats",
    "l2_ratio",
}
HOOKS = ["blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"]
ROWS, SPLICED, SEEN = 20, 5, 9
BITS = [4, 1, 8]


@pytest.fixture(scope="module")
def world(model: LanguageModel, packed: PackedText):
    """Sites, dictionaries, references, the tokens that measure() will choose, and the activations there."""
    sites = resolve(HOOKS, model)
    chosen = torch.randperm(len(packed.test), generator=generator_of("evaluation", 0)).numpy()[:ROWS]
    tokens_RC = torch.from_numpy(packed.test.tokens[chosen].astype("int64"))
    activations = model.activations(tokens_RC, sites)
    dictionaries: dict[Site, dict[str, Dictionary]] = {}
    codecs = {}
    for site in sites:
        x_ND = activations[site.key].flatten(0, 1)
        codecs[site] = references(activations[site.key][:, 0].mean(0), x_ND.mean(0) + 0.01)
        topk, batchtopk = TopK(site.width, 48, 4, seed=5), BatchTopK(site.width, 64, 6, seed=1)
        for learned in (topk, batchtopk):
            learned.prepare(x_ND, dead_window=100)
            learned.calibrate(x_ND)
            learned.eval()
        topk.provenance = {"tokens": 123_456_789, "seed": 5}
        directions = torch.randn(20, site.width, generator=torch.Generator().manual_seed(2))
        prefix = Linear(site.width, 20, 3, "prefix", directions, x_ND.mean(0))
        dictionaries[site] = {"topk": topk, "batchtopk": batchtopk, "prefix": prefix}
    return sites, dictionaries, codecs, tokens_RC, activations


def run(world, model: LanguageModel, packed: PackedText, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    sites, dictionaries, codecs, _, _ = world
    validation = Source(model, packed).windows("validation", sites, SEEN * 32, rows=4)
    sizes = {"tokens": ROWS * 32 + 31, "splice_tokens": SPLICED * 32}
    measured = measure(model, packed.test, named_entries(dictionaries), codecs, validation, **{**sizes, **options})
    return measured.table(draws=200), measured.densities()


@pytest.fixture(scope="module")
def tables(world, model: LanguageModel, packed: PackedText) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values as they are."""
    return run(world, model, packed, value_bits=[])


@pytest.fixture(scope="module")
def coded(world, model: LanguageModel, packed: PackedText) -> pd.DataFrame:
    """Values at 1, 4 and 8 bits."""
    return run(world, model, packed, value_bits=BITS)[0]


@pytest.fixture
def value(tables):
    table = tables[0].set_index(["site", "dictionary", "metric", "position0"]).sort_index()
    assert table.index.is_unique
    return lambda site, name, metric, position0="excluded": table.loc[site.hook, name, metric, position0]["value"]


def read(x_RCD: Tensor, tokens_RC: Tensor, position0: str) -> Tensor:
    """The vectors that count: none of the separator, id 0, but at position 0, which is in where it is included."""
    read_RC = tokens_RC != 0
    read_RC[:, 0] = position0 == "included"
    return x_RCD[read_RC]


def splice(x_RCD: Tensor, x_hat_RCD: Tensor, tokens_RC: Tensor, position0: str) -> Tensor:
    kept_RC = tokens_RC == 0
    kept_RC[:, 0] = position0 == "excluded"
    return torch.where(kept_RC[..., None], x_RCD, x_hat_RCD)


def test_the_text_here_has_separators_where_they_could_be_read(world, model):
    *_, tokens_RC, _ = world
    assert model.special_ids == (0,)
    assert (tokens_RC[:SPLICED, 1:] == 0).any()
    assert (tokens_RC[SPLICED:, 1:] == 0).any()


def test_the_table_has_its_columns_and_every_metric_of_every_codec(tables):
    table, _ = tables
    assert list(table.columns) == COLUMNS
    for _, rows in table.groupby(["site", "dictionary", "position0"]):
        assert set(rows["metric"]) == METRICS
        assert len(rows) == len(METRICS)
    assert table.groupby(["site", "position0"])["dictionary"].nunique().eq(6).all()
    assert set(table["site"]) == set(HOOKS)
    assert set(table["split"]) == {"test"}
    spliced = table["metric"].isin(["dce", "kl", "loss_recovered_zero", "loss_recovered_mean"])
    assert set(table.loc[spliced, "tokens"]) == {SPLICED * 32}
    assert set(table.loc[~spliced, "tokens"]) == {ROWS * 32}


@pytest.mark.parametrize("position0", ["excluded", "included"])
@pytest.mark.parametrize("name", ["topk", "batchtopk", "prefix"])
def test_reconstruction_is_that_of_the_gathered_activations(world, value, name: str, position0: str):
    sites, dictionaries, _, tokens_RC, activations = world
    for site in sites:
        x_ND, dictionary = read(activations[site.key], tokens_RC, position0), dictionaries[site][name]
        with torch.no_grad():
            x_hat_ND, z_NL = dictionary(x_ND), dictionary.encode(x_ND)
        active_NL = (z_NL != 0).double()
        assert value(site, name, "fvu", position0) == pytest.approx(metrics.fvu(x_ND, x_hat_ND), rel=1e-4)
        ratio = (x_hat_ND.norm(dim=1) / x_ND.norm(dim=1)).double().mean().item()
        assert value(site, name, "l2_ratio", position0) == pytest.approx(ratio, rel=1e-5)
        assert value(site, name, "l0", position0) == pytest.approx(active_NL.sum(1).mean().item(), rel=1e-9)
        assert value(site, name, "density", position0) == pytest.approx(active_NL.mean().item(), rel=1e-9)
        dead = (active_NL.sum(0) == 0).double().mean().item()
        assert value(site, name, "dead", position0) == pytest.approx(dead, rel=1e-9)


def test_a_dictionary_that_knows_the_token_is_told_each_position_s(world, model: LanguageModel, packed: PackedText):
    (site, _), _, codecs, tokens_RC, activations = world
    x_ND, tokens_N = (read(x, tokens_RC, "included") for x in (activations[site.key], tokens_RC))
    dictionary = TokenBiasTopK(site.width, 48, 2, vocabulary=model.vocabulary)
    dictionary.prepare(x_ND, dead_window=100, tokens_N=tokens_N)
    sizes = {"tokens": ROWS * 32, "splice_tokens": SPLICED * 32, "value_bits": []}
    table = measure(
        model, packed.test, named_entries({site: {"d": dictionary}}), {site: codecs[site]}, [], **sizes
    ).table(draws=20)
    found = table.set_index(["dictionary", "metric", "position0"]).sort_index()["value"]
    x_hat_ND = dictionary(x_ND, tokens_N).detach()
    assert found["d", "fvu", "included"] == pytest.approx(metrics.fvu(x_ND, x_hat_ND), rel=1e-4)
    assert metrics.fvu(x_ND, x_hat_ND) < 0.9 * metrics.fvu(x_ND, dictionary(x_ND, tokens_N.flip(0)).detach())


@pytest.mark.parametrize("position0", ["excluded", "included"])
def test_losses_are_those_of_the_first_spliced_rows(world, value, model: LanguageModel, position0: str):
    sites, dictionaries, codecs, tokens_RC, activations = world
    clean = CleanPass.run(model, tokens_RC[:SPLICED], sites)
    for site in sites:
        x_RCD = activations[site.key][:SPLICED]

        def spliced(x_hat_RCD: Tensor, site=site, x_RCD=x_RCD) -> tuple[float, float]:
            loss_RC, kl_RC = clean.spliced(site, splice(x_RCD, x_hat_RCD, tokens_RC[:SPLICED], position0))
            return loss_RC.double().mean().item(), kl_RC.double().mean().item()

        with torch.no_grad():
            x_hat_RCD = dictionaries[site]["topk"](x_RCD.flatten(0, 1)).view_as(x_RCD)
        loss, kl = spliced(x_hat_RCD)
        base = clean.loss_RC.double().mean().item()
        zero, _ = spliced(torch.zeros_like(x_RCD))
        mean, _ = spliced(codecs[site]["mean"].mean_D.expand_as(x_RCD))
        assert value(site, "topk", "dce", position0) == pytest.approx(loss - base, rel=1e-3, abs=1e-5)
        assert value(site, "topk", "kl", position0) == pytest.approx(kl, rel=1e-3, abs=1e-5)
        for ablation, cost in (("zero", zero), ("mean", mean)):
            expected = (cost - loss) / (cost - base)
            assert value(site, "topk", f"loss_recovered_{ablation}", position0) == pytest.approx(expected, rel=1e-2)


def test_the_codecs_bound_the_table(world, value):
    sites, _, codecs, tokens_RC, activations = world
    for site in sites:
        for position0 in ("excluded", "included"):
            for metric, exact in (("fvu", 0), ("dce", 0), ("kl", 0), ("l2_ratio", 1)):
                assert value(site, "identity", metric, position0) == exact
            for ablation in ("zero", "mean"):
                assert value(site, "identity", f"loss_recovered_{ablation}", position0) == 1
            assert value(site, "mean", "loss_recovered_mean", position0) == 0
            for codec in ("identity", "mean", "position0"):
                for metric in ("bits", "bits_entropy", "table_floats", "l0", "density", "dead"):
                    assert math.isnan(value(site, codec, metric, position0))
            x_ND = read(activations[site.key], tokens_RC, position0)
            expected = metrics.fvu(x_ND, codecs[site]["mean"].mean_D.expand_as(x_ND))
            assert value(site, "mean", "fvu", position0) == pytest.approx(expected, rel=1e-5)
        for metric in ("fvu", "dce", "kl"):  # where position 0 is left out, to know it is worth nothing
            assert value(site, "position0", metric) == value(site, "mean", metric)
        assert value(site, "position0", "fvu", "included") < value(site, "mean", "fvu", "included")


def test_bits_are_of_k_and_where_k_varies_of_each_tokens_own(world, value, tables):
    sites, dictionaries, _, tokens_RC, activations = world
    for site in sites:
        assert value(site, "topk", "bits") == pytest.approx(bits(48, 4, signed=False))
        assert value(site, "prefix", "bits") == pytest.approx(27)  # nine each, and the support is known
        for position0 in ("excluded", "included"):
            with torch.no_grad():
                z_NL = dictionaries[site]["batchtopk"].encode(read(activations[site.key], tokens_RC, position0))
            l0_N = (z_NL != 0).sum(1)
            assert l0_N.unique().numel() > 2
            p_K = l0_N.bincount().double() / len(l0_N)
            expected = np.mean([bits(64, int(k), signed=False) for k in l0_N])
            expected -= (p_K * p_K.clamp_min(1e-30).log2()).sum().item()  # which says how many there are
            assert value(site, "batchtopk", "bits", position0) == pytest.approx(expected, rel=1e-9)
    assert dictionaries[sites[0]]["batchtopk"].bits() == pytest.approx(bits(64, 6, signed=False))


def test_rows_of_each_number_of_bits_decode_values_on_the_levels_of_validation(world, coded, tables, model, packed):
    """By hand: each dictionary's codes on the levels of its validation codes, position 0 on its own; dce where it was
    spliced."""
    sites, dictionaries, _, tokens_RC, activations = world
    of_codes = coded["metric"].isin(["l0", "density", "dead"]) | (coded["kind"] == "codec")
    assert coded.loc[of_codes, "value_bits"].isna().all()
    assert set(coded.loc[~of_codes, "value_bits"]) == set(BITS)
    assert tables[0]["value_bits"].isna().all()
    table = coded.set_index(["site", "dictionary", "metric", "position0", "value_bits"])["value"]
    assert table.index.is_unique
    raw = tables[0].set_index(["site", "dictionary", "metric", "position0"])["value"]
    first_N = (torch.arange(32) == 0).repeat(ROWS)
    clean = CleanPass.run(model, tokens_RC[:SPLICED], sites)
    for site in sites:
        for name, dictionary in dictionaries[site].items():
            seen = Calibration(dictionary.latents)
            for window in Source(model, packed).windows("validation", sites, SEEN * 32):
                part_RC = window.tokens_RC
                codes = dictionary.encode_sparse(read(window.activations[site.key], part_RC, "included"))
                seen.update(codes, read((torch.arange(32) == 0).repeat(len(part_RC), 1), part_RC, "included"))
            x_RCD = activations[site.key]
            encoded = dictionary.encode_sparse(x_RCD.flatten(0, 1))
            for b in BITS:
                codes = Quantiser.fit(seen.values, torch.full((2 * 2 * dictionary.latents,), b)).quantise(
                    encoded, first_N
                )
                x_hat_RCD = dictionary.decode_sparse(codes).view_as(x_RCD)
                for position0 in ("excluded", "included"):
                    expected = metrics.fvu(*(read(x, tokens_RC, position0) for x in (x_RCD, x_hat_RCD)))
                    assert table[site.hook, name, "fvu", position0, b] == pytest.approx(expected, rel=1e-4)
                    values = raw[site.hook, name, "bits", position0] - table[site.hook, name, "bits", position0, b]
                    l0 = raw[site.hook, name, "l0", position0]
                    assert values == pytest.approx((8 - b) * (dictionary.k if name != "batchtopk" else l0))
                    spliced = splice(x_RCD, x_hat_RCD, tokens_RC, position0)[:SPLICED]
                    dce = (clean.spliced(site, spliced)[0] - clean.loss_RC).mean().item()
                    found = table[site.hook, name, "dce", position0, b]
                    if b == 8 or not math.isnan(found):
                        assert found == pytest.approx(dce, rel=1e-3, abs=1e-5)
                    assert b == 8 or position0 == "excluded" or math.isnan(found)


def test_bits_entropy_is_that_of_validation_frequencies(world, tables, value, model, packed):
    """From dense codes: sum over all latents of -log2 of the probability of what each did, on every test vector."""
    sites, dictionaries, _, tokens_RC, activations = world
    (window,) = Source(model, packed).windows("validation", sites, SEEN * 32)
    for site in sites:
        for name, each in (("topk", 8), ("batchtopk", 8), ("prefix", 9)):
            for position0 in ("excluded", "included"):
                on_NL = (
                    dictionaries[site][name].encode(read(window.activations[site.key], window.tokens_RC, position0))
                    != 0
                )
                p_L = (on_NL.sum(0) + 0.5).double() / (len(on_NL) + 1)
                on_NL = dictionaries[site][name].encode(read(activations[site.key], tokens_RC, position0)) != 0
                index = -torch.where(on_NL, p_L, 1 - p_L).log2().sum(1).mean() if name != "prefix" else 0
                expected = float(index + each * on_NL.double().sum(1).mean())
                assert value(site, name, "bits_entropy", position0) == pytest.approx(expected, rel=1e-9)
    row = tables[0][(tables[0]["metric"] == "bits_entropy") & (tables[0]["dictionary"] == "topk")]
    assert (row["low"] < row["value"]).all()
    assert (row["value"] < row["high"]).all()


def test_intervals_hold_their_value_and_are_absent_where_they_mean_nothing(tables):
    table, _ = tables
    known = table.dropna(subset=["low"])
    slack = known["metric"].eq("fvu") * 0.005 + 1e-9  # a resample's variance, about its own mean, is 1/documents less
    ratio = known["metric"] == "loss_recovered_mean"  # its divisor, nats of the mean here, changes sign among resamples
    assert (known["low"] <= known["high"]).all()
    assert (known["low"] <= known["value"] + slack)[~ratio].all()
    assert (known["value"] <= known["high"] + slack)[~ratio].all()
    assert table.loc[table["metric"].isin(["dead", "bits", "table_floats"]), ["low", "high"]].isna().all(axis=None)
    wide = known[(known["dictionary"] == "topk") & known["metric"].isin(["fvu", "dce", "kl"])]
    assert (wide["high"] > wide["low"]).all()


@pytest.mark.parametrize(("documents", "known"), [(1, False), (4, False), (5, True)])
def test_intervals_are_of_documents_enough(
    world, model: LanguageModel, packed: PackedText, documents: int, known: bool
):
    sites, dictionaries, codecs, _, _ = world
    numbers = np.arange(packed.test.documents.size).reshape(packed.test.documents.shape) % documents
    rows, sizes = replace(packed.test, documents=numbers), {"tokens": 8 * 32, "splice_tokens": 32, "value_bits": []}
    table = measure(
        model, rows, named_entries({sites[0]: dictionaries[sites[0]]}), {sites[0]: codecs[sites[0]]}, [], **sizes
    ).table(draws=50)
    drawn = table[~table["metric"].isin(["dead", "bits", "bits_entropy", "table_floats"]) & table["value"].notna()]
    assert (drawn["documents"] == documents).all()
    assert drawn[["low", "high"]].notna().all(axis=None) == known
    assert drawn[["low", "high"]].isna().all(axis=None) != known


def test_what_is_spliced_counts_its_own_documents(world, model: LanguageModel, packed: PackedText):
    sites, dictionaries, codecs, _, _ = world
    order = torch.randperm(len(packed.test), generator=generator_of("evaluation", 0)).numpy()
    numbers = np.zeros(packed.test.documents.shape, np.int64)
    numbers[order] = np.arange(len(numbers))[:, None]  # one document per row
    sizes = {"tokens": 12 * 32, "splice_tokens": 3 * 32, "value_bits": []}
    rows = replace(packed.test, documents=numbers)
    table = measure(
        model, rows, named_entries({sites[0]: dictionaries[sites[0]]}), {sites[0]: codecs[sites[0]]}, [], **sizes
    ).table(draws=50)
    for metric, documents in (("fvu", 12), ("dce", 3), ("kl", 3)):
        mine = table[(table["metric"] == metric) & (table["dictionary"] == "topk")]
        assert set(mine["documents"]) == {documents}
        assert mine["low"].isna().all() == (documents < 5)


def test_without_validation_there_is_no_grid_and_no_frequency(world, model: LanguageModel, packed: PackedText):
    sites, dictionaries, codecs, _, _ = world
    one, sizes = named_entries({sites[0]: dictionaries[sites[0]]}), {"tokens": 64, "splice_tokens": 32}
    with pytest.raises(ValueError, match="validation: no vector, so no levels that codes could be put on"):
        measure(model, packed.test, one, {sites[0]: codecs[sites[0]]}, [], **sizes)
    table = measure(model, packed.test, one, {sites[0]: codecs[sites[0]]}, [], **sizes, value_bits=[]).table(draws=20)
    topk = table[table["dictionary"] == "topk"].set_index("metric")["value"]
    assert topk["bits_entropy"].isna().all()
    assert topk["fvu"].notna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "evaluation.tokens=0 is less than one row of 32 tokens; raise it"),
        ({"splice_tokens": 31}, "evaluation.splice_tokens=31 is less than one row of 32 tokens; raise it"),
        (
            {"validation_tokens": 0},
            "evaluation.validation_tokens=0: .* at least 1, or with evaluation.value_bits=\\[\\] 0",
        ),
        ({"validation_tokens": -1, "value_bits": []}, "evaluation.validation_tokens=-1"),
        ({"value_bits": [0, 8]}, r"evaluation.value_bits=\[0, 8\]: whole numbers from 1 to 15, each once"),
        ({"value_bits": [2, 2]}, r"evaluation.value_bits=\[2, 2\]: .* each once"),
        ({"levels": "max"}, "evaluation.levels=max: one of lloyd, uniform"),
        ({"coders": ["own", "opm"]}, "evaluation.coders: no coder .opm.; nearest: omp"),
        ({"draws": 1}, "evaluation.draws=1: at least 20 for intervals, or 0 for a table without any"),
    ],
)
def test_options_from_which_no_number_follows(change, message):
    options = {
        "tokens": 64,
        "splice_tokens": 32,
        "validation_tokens": 32,
        "value_bits": [8],
        "draws": 20,
        "context": 32,
    }
    options |= {"levels": "lloyd", "coders": ["own"]}
    for fine in ({}, {"draws": 0}, {"validation_tokens": 0, "value_bits": []}):
        check_options(**options | fine)
    with pytest.raises(ValueError, match=message):
        check_options(**options | change)


def test_provenance_is_in_the_table_in_full_digits(tables, tmp_path):
    table, _ = tables
    write_table(table, tmp_path / "evaluation.csv")
    there = pd.read_csv(tmp_path / "evaluation.csv", dtype=str, keep_default_na=False)
    about = there.drop_duplicates("dictionary").set_index("dictionary")[
        ["method", "role", "kind", "k", "latents", "trained_tokens", "seed"]
    ]
    assert about.loc["topk"].tolist() == ["topk", "rays", "topk", "4", "48", "123456789", "5"]
    assert about.loc["prefix"].tolist() == ["prefix", "baseline", "linear", "3", "20", "", ""]
    assert about.loc["identity"].tolist() == ["identity", "reference", "codec", "", "", "", ""]
    bits = there[(there["metric"] == "bits") & (there["kind"] == "codec")]
    assert set(bits["value"]) == set(bits["low"]) == {""}


def test_densities_sum_to_l0(tables, value, world):
    _, density = tables
    sites, dictionaries, _, _, _ = world
    assert list(density.columns) == ["site", "dictionary", "latent", "density"]
    assert set(density["dictionary"]) == {"topk", "batchtopk", "prefix"}
    for site in sites:
        for name, dictionary in dictionaries[site].items():
            mine = density[(density["site"] == site.hook) & (density["dictionary"] == name)]
            assert mine["latent"].tolist() == list(range(dictionary.latents))
            assert mine["density"].sum() == pytest.approx(value(site, name, "l0"), rel=1e-9)
            assert (mine["density"] == 0).mean() == pytest.approx(value(site, name, "dead"), rel=1e-9)


def test_how_rows_are_cut_into_passes_changes_nothing(world, tables, model, packed, monkeypatch):
    monkeypatch.setattr("rayscope.evaluation.measure.LOGITS", 2 * 32 * 320)  # two rows per pass
    again, _ = run(world, model, packed, tokens=ROWS * 32, value_bits=[])
    for column in ("value", "low", "high"):
        np.testing.assert_allclose(again[column], tables[0][column], rtol=1e-3, atol=1e-5)
    pd.testing.assert_frame_equal(
        again.drop(columns=["value", "low", "high"]), tables[0].drop(columns=["value", "low", "high"])
    )
