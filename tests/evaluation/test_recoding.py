"""Which entries there are under other coders, and how long they take."""

import pytest
import torch

from helpers import randn
from rayscope.dictionaries import BatchTopK, Gated, Linear, Recoded, TopK
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.recoding import alike, are_orthogonal, check_coders, under
from rayscope.evaluation.seconds import COLUMNS, Stopwatch
from rayscope.model.sites import resolve
from rayscope.streams.stream import Vectors


@pytest.fixture
def site(model):
    return resolve("blocks.1.hook_resid_post", model)[0]


def entries_of(site, dictionaries):
    return [Entry(site, name, "rays", d.k, 0, d, f"{name}_k{d.k}") for name, d in dictionaries.items()]


def rows(L, D=32, seed=1):
    return randn(L, D, seed=seed)


def test_each_learned_dictionary_is_there_under_each_coder(site):
    entries = entries_of(site, {"topk": TopK(32, 64, 4), "batchtopk": BatchTopK(32, 64, 4)})
    found = under(entries, ["own", "omp", "pursuit"])
    names = [f"{kind}_k4{coder}" for kind in ("topk", "batchtopk") for coder in ("", "_omp", "_pursuit")]
    assert [entry.name for entry in found] == names
    assert [entry.coder for entry in found] == ["own", "omp", "pursuit"] * 2
    assert found[0] is entries[0]
    assert isinstance(found[1].dictionary, Recoded)
    assert found[1].dictionary.coder == "omp"
    assert (found[1].method, found[1].k, found[1].role) == ("topk", 4, "rays")
    assert [entry.name for entry in under(entries, ["omp"])] == ["topk_k4_omp", "batchtopk_k4_omp"]


def test_codes_that_are_there_already_are_left_out(site):
    basis = torch.linalg.qr(rows(32)).Q
    given = {
        "pca_topk": Linear(32, 32, 4, "topk", basis),
        "pca_prefix": Linear(32, 32, 4, "prefix", basis),
        "pca_split": Linear(32, 64, 4, "topk", torch.cat([basis, -basis]), signed=False),
        "k_means": Linear(32, 40, 1, "topk", rows(40), signed=False),
        "token_means": Linear(32, 40, 4, "omp", rows(40)),
        "ica": Linear(32, 20, 4, "topk", rows(20)),
    }
    names = lambda coders: [entry.name for entry in under(entries_of(site, given), coders)]  # noqa: E731
    own = [f"{name}_k{dictionary.k}" for name, dictionary in given.items()]
    assert names(["own"]) == own
    assert names(["own", "omp"]) == [*own, "ica_k4_omp"]
    assert names(["omp"]) == [*own[:-1], "ica_k4_omp"]  # what others are already stays under its own name
    assert names(["own", "topk"]) == [*own[:5], "token_means_k4_topk", own[5]]


@pytest.mark.parametrize("coder", ["topk", "omp", "pursuit", "fista"])
@pytest.mark.parametrize("name", ["signed", "rays", "opposite", "one code"])
def test_what_is_said_to_be_alike_has_the_same_codes(name, coder):
    basis = torch.linalg.qr(rows(12, 12)).Q[:10]
    dictionary = {
        "signed": Linear(12, 10, 3, "topk", basis),
        "rays": Linear(12, 10, 3, "topk", basis, signed=False),
        "opposite": Linear(12, 20, 3, "topk", torch.cat([basis, -basis]), signed=False),
        "one code": Linear(12, 30, 1, "topk", rows(30, 12), signed=False),
    }[name]
    assert coder in alike(dictionary)
    x_ND = rows(100, 12, seed=3)
    other = Recoded(dictionary, coder).encode(x_ND)
    torch.testing.assert_close(other, dictionary.encode(x_ND), rtol=1e-3, atol=1e-4)


def test_orthogonal_is_not_nearly_so():
    basis = torch.linalg.qr(rows(12, 12)).Q
    near = basis.clone()
    near[0] = basis[0] + 0.01 * basis[1]
    assert are_orthogonal(Linear(12, 12, 2, "topk", basis))
    assert not are_orthogonal(Linear(12, 12, 2, "topk", near))
    assert not are_orthogonal(Linear(12, 24, 2, "topk", torch.cat([basis, -basis])))  # signed: of no more than D
    assert alike(Linear(12, 12, 2, "omp", near)) == ("omp",)


def test_a_name_that_another_entry_has_is_refused(site):
    entries = entries_of(site, {"topk": TopK(32, 64, 4)})
    other = Entry(site, "mine", "rays", 4, 0, TopK(32, 64, 4), "topk_k4_omp")
    with pytest.raises(ValueError, match=r"topk_k4_omp at .* is the name of topk_k4 coded by omp too; rename"):
        under([*entries, other], ["own", "omp"])


def test_only_k_sparse_kinds_have_refined_codes_and_once(site):
    kinds = {"topk": TopK(32, 64, 4), "gated": Gated(32, 64, 4), "given": Linear(32, 64, 4, "omp", rows(64))}
    more = {"whitened": TopK(32, 64, 4, whiten=True), "trained": TopK(32, 64, 4, refine=3)}
    found = under(entries_of(site, kinds | more), ["own", "refined"])
    assert [entry.name for entry in found] == [
        *("topk_k4", "topk_k4_refined", "gated_k4", "given_k4", "whitened_k4", "trained_k4")
    ]
    assert (found[1].coder, found[1].dictionary.refine, found[0].dictionary.refine) == ("refined", 2, None)


def test_what_is_no_list_of_coders():
    check_coders(["own", "refined", "topk", "omp", "pursuit", "fista"])
    for coders, message in (([], "give one"), (["opm"], "nearest: omp"), (["own", "own"], "each coder once")):
        with pytest.raises(ValueError, match=f"study.run.coders.*{message}"):
            check_coders(coders, "study.run.coders")


def test_seconds_are_per_1000_vectors_and_a_median_over_batches(site, monkeypatch):
    ticks = iter([0.0, 1.0, 10.0, 10.5, 20.0, 20.1])
    monkeypatch.setattr("rayscope.evaluation.seconds.time.perf_counter", lambda: next(ticks))
    stopwatch, (entry,) = Stopwatch(), entries_of(site, {"topk": TopK(32, 64, 4)})
    for vectors in (500, 500, 50):  # 2, 1 and 2 seconds per 1,000
        x_ND, zeros_N = rows(vectors), torch.zeros(vectors, dtype=torch.int64)
        codes = stopwatch.encode(site, entry.name, entry.dictionary, Vectors(x_ND, x_ND, zeros_N, zeros_N, zeros_N > 0))
        assert codes.dense().equal(entry.dictionary.encode(x_ND))
    table = stopwatch.table([entry])
    assert list(table.columns) == COLUMNS
    row = table.iloc[0]
    assert (row["dictionary"], row["coder"], row["also"], row["vectors"]) == ("topk_k4", "own", "", 1050)
    assert row["seconds_per_1000"] == pytest.approx(2)
    assert Stopwatch().table([entry])["seconds_per_1000"].isna().all()
