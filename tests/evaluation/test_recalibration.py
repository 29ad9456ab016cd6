"""Thresholds set again on another text: L0 is k there, and what is saved stays as it is."""

import pytest
import torch

from rayscope.baselines import pca_topk
from rayscope.dictionaries import BatchTopK, TopK, load
from rayscope.dictionaries.learned.jumprelu import JumpReLU
from rayscope.evaluation.comparison import Baseline, compare
from rayscope.evaluation.entry import named_entries
from rayscope.evaluation.measure import check_options
from rayscope.evaluation.recalibration import calibrated_on, recalibrated, set_to_data
from rayscope.model.sites import resolve
from rayscope.pipeline import measure_compared
from rayscope.streams.source import Source
from rayscope.text import Prose, pack, said

K, TOKENS = 4, 2048


@pytest.fixture(scope="module")
def world(model, packed, tmp_path_factory):
    """A BatchTopK set on the toy text and saved, the site, and the source of real prose."""
    (site,) = resolve("blocks.1.hook_resid_post", model)
    toy = Source(model, packed, batch_size=64, round_tokens=512)
    prose = pack(Prose(max_tokens=40_000), model.tokenizer, model.context)
    dictionary = BatchTopK(32, 64, K)
    dictionary.prepare(toy.stream("train", [site], 2048)[0].activations[site.key], dead_window=100)
    dictionary.calibrate(torch.cat([batch.activations[site.key] for batch in toy.stream("validation", [site], TOKENS)]))
    folder = dictionary.save(tmp_path_factory.mktemp("saved") / "batchtopk", toy.provenance(site))
    return site, folder, toy, Source(model, prose, batch_size=64, round_tokens=512)


def later(source, site):
    """What thresholds are set on, read apart: validation vectors, position 0 left out."""
    vectors = [window.at(site) for window in source.windows("validation", [site], TOKENS)]
    return torch.cat([v.x_ND[~v.first_N] for v in vectors])


def mean_l0(dictionary, x_ND):
    return (dictionary.encode(x_ND) != 0).sum(1).double().mean().item()


def test_l0_is_k_on_the_text_evaluated_and_the_saved_folder_stays(world):
    site, folder, toy, prose = world
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    saved, fixed = load(folder), TopK(32, 64, K)
    entries = named_entries({site: {"batchtopk": saved, "topk": fixed}})
    x_ND, text = later(prose, site), prose.text.provenance
    assert abs(mean_l0(saved, x_ND) - K) > 0.03  # set on other text
    again, same = recalibrated(entries, prose.windows("validation", [site], TOKENS), text)
    assert mean_l0(again.dictionary, x_ND) == pytest.approx(K, abs=1.5 / len(x_ND))
    assert mean_l0(saved, later(toy, site)) == pytest.approx(K, rel=0.1)  # the one given has its own threshold still
    assert saved.threshold != again.dictionary.threshold
    assert torch.equal(saved.W_enc_LD, again.dictionary.W_enc_LD)
    assert same is entries[1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert calibrated_on(saved) == said(toy.text.provenance)
    assert calibrated_on(again.dictionary) == said(text)
    assert again.dictionary.provenance["text"] == toy.text.provenance  # it was trained where it was
    assert calibrated_on(fixed) == ""


def test_only_a_kind_with_a_threshold_set_to_data_is_set(world):
    assert set_to_data(JumpReLU(8, 16, 2)) == []  # its thresholds are trained
    assert set_to_data(TopK(8, 16, 2)) == []
    dictionary = BatchTopK(8, 16, 2)
    assert set_to_data(dictionary) == [dictionary]
    site = world[0]
    assert recalibrated(named_entries({site: {"topk": TopK(32, 64, K)}}), iter(()), {})[0].name == "topk"
    with pytest.raises(ValueError, match=r"evaluation.recalibrate=true: validation text has no position"):
        recalibrated(named_entries({site: {"batchtopk": dictionary}}), iter(()), {})


def test_the_table_says_where_thresholds_were_set(world, one_thread):
    site, folder, toy, prose = world
    entries = named_entries({site: {"batchtopk": load(folder), "topk": TopK(32, 64, K)}})
    compared = compare(prose, entries, [Baseline("pca_topk", pca_topk)], K, 512, fitting=toy)
    sizes = {"tokens": 1024, "splice_tokens": 128, "validation_tokens": TOKENS, "value_bits": [8]}
    tables = [measure_compared(compared, **sizes, recalibrate=again).table(draws=20) for again in (False, True)]
    for table, text in zip(tables, (toy.text, prose.text), strict=True):
        places = table.groupby("dictionary")["calibrated_on"].unique()
        assert places["batchtopk"] == [said(text.provenance)]
        assert {*places.drop("batchtopk").map(tuple)} == {("",)}
    l0 = [
        table[(table["dictionary"] == "batchtopk") & (table["metric"] == "l0") & (table["position0"] == "excluded")]
        for table in tables
    ]
    off, on = (abs(rows["value"].item() - K) for rows in l0)
    assert on < off  # on test documents
    others = [table[table["dictionary"].isin(["topk", "mean"])].drop(columns="calibrated_on") for table in tables]
    assert others[0].equals(others[1])


def test_thresholds_need_a_row_of_validation_text():
    sizes = {
        "tokens": 256,
        "splice_tokens": 256,
        "value_bits": [],
        "levels": "lloyd",
        "coders": ["own"],
        "draws": 0,
        "context": 256,
    }
    check_options(**sizes, validation_tokens=0)
    check_options(**sizes, validation_tokens=256, recalibrate=True)
    with pytest.raises(ValueError, match=r"evaluation.validation_tokens=255: thresholds are set there"):
        check_options(**sizes, validation_tokens=255, recalibrate=True)
