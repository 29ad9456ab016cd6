"""An entry's method and role follow from what its dictionary is, never from what its user calls it."""

import pytest
import torch

from rayscope.baselines import SiteFit, pca_topk, random
from rayscope.dictionaries import AbsTopK, BatchTopK, Linear, TiedTopK, TokenBiasTopK, TopK
from rayscope.evaluation.comparison import Baseline, compare, reference_codecs
from rayscope.evaluation.entry import label, named_entries
from rayscope.evaluation.measure import measure
from rayscope.model.sites import Site, resolve
from rayscope.pipeline import write_table
from rayscope.report import read_file
from rayscope.report.tables import rows
from rayscope.streams.source import Source

SITE, WIDE = Site("blocks.0.hook_resid_post", 8, 0), Site("blocks.0.mlp.hook_post", 32, 0)
HOSTILE = ["random", "frozen", "shuffled_untrained", "mean", "pca_topk_k8", "topk_k4", "linear_probe", "k=2", "a/b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_decides_nothing(name):
    told = TokenBiasTopK(8, 16, 2, vocabulary=5)
    null = Linear(8, 16, 2, "topk", torch.randn(16, 8))
    null.provenance["role"] = "control"
    expected = {
        TopK(8, 16, 2): ("topk", "rays"),
        AbsTopK(8, 16, 2): ("abstopk", "directions"),
        TopK(8, 16, 2, decoder="frozen"): ("topk", "control"),
        TopK(8, 16, 2, decoder="soft_frozen"): ("topk", "control"),
        TopK(8, 16, 2, encoder="frozen"): ("topk", "rays"),  # its directions are learned
        told: ("token_bias_topk", "told"),
        Linear(8, 16, 2, "topk", torch.randn(16, 8)): (name, "baseline"),
        null: (name, "control"),
    }
    for dictionary, (method, role) in expected.items():
        (entry,) = named_entries({SITE: {name: dictionary}})
        assert (entry.method, entry.role, entry.k, entry.name) == (method, role, 2, name)


def test_a_method_says_what_differs_besides_k_and_seed():
    at = {
        "one": TopK(8, 16, 2, lr=1e-3),
        "two": TopK(8, 16, 4, lr=1e-3, seed=9),
        "three": TopK(8, 16, 2, lr=1e-3, decoder="frozen"),
        "four": TopK(8, 32, 2, lr=1e-3),
        "five": TopK(8, 16, 2, lr=0.25),
        "six": BatchTopK(8, 16, 2, lr=0.25),
    }
    for name, tokens in (("one", 500), ("two", 500), ("six", 70)):
        at[name].provenance["tokens"] = tokens
    at["two"].provenance["stage"] = "kl"
    learned = named_entries({SITE: at})
    common = "latents=16 lr=0.001"
    assert [entry.method for entry in learned] == [
        f"topk {common} tokens=500",
        f"topk {common} stage=kl tokens=500",
        "topk latents=16 decoder=frozen lr=0.001",
        "topk latents=32 lr=0.001",
        "topk latents=16 lr=0.25",
        "batchtopk",
    ]


def test_a_default_is_left_out_of_the_method_whichever_class_it_stands_in():
    at = {
        "one": BatchTopK(8, 16, 2, lr=1e-3),
        "two": BatchTopK(8, 16, 2, lr=1e-3, decoder="frozen"),
        "three": TiedTopK(8, 16, 2, lr=1e-3, whiten=True),
        "four": TiedTopK(8, 16, 2, lr=1e-3),
    }
    methods = [entry.method for entry in named_entries({SITE: at})]
    assert methods == ["batchtopk", "batchtopk decoder=frozen", "tied_topk whiten=True", "tied_topk"]


def test_what_differs_between_sites_alone_is_no_other_method():
    """AuxK's default follows the width, a Matryoshka's groups its latents."""
    dictionaries = {site: {"a": TopK(site.width, 64, 2), "b": TopK(site.width, 64, 4)} for site in (SITE, WIDE)}
    assert dictionaries[SITE]["a"].auxk != dictionaries[WIDE]["a"].auxk
    assert {entry.method for entry in named_entries(dictionaries)} == {"topk"}


def test_names_made_here():
    assert (label("ica", 8), label("ica", 8, 0)) == ("ica_k8", "ica_k8_s0")


def topk(fit: SiteFit) -> Linear:
    """A user's own baseline, which is no TopK."""
    return Linear(fit.site.width, 4, 1, "topk", torch.eye(4, fit.site.width))


def test_from_entries_to_the_table_to_the_report(model, packed, tmp_path):
    """A learned dictionary called random_init_topk is learned, a user's baseline called topk is a baseline."""
    (site,) = resolve("blocks.1.hook_resid_post", model)
    source = Source(model, packed, batch_size=64, round_tokens=512)
    x_ND = source.stream("train", [site], 512)[0].activations[site.key]
    named = {"random_init_topk": TopK(32, 48, 2), "frozen_x": AbsTopK(32, 48, 2), "mean_k4": TopK(32, 48, 4)}
    for dictionary in named.values():
        dictionary.prepare(x_ND, dead_window=100)
    listed = [
        Baseline("topk", topk, max_k=2),
        Baseline("pca_topk", pca_topk),
        Baseline("mine", lambda fit: random(fit, latents=64)),
    ]
    compared = compare(source, named_entries({site: named}), listed, 2, 512)
    sizes = {"tokens": 320, "splice_tokens": 160, "value_bits": []}
    measured = measure(model, packed.test, compared.entries, reference_codecs(compared), [], **sizes)
    assert [entry.name for entry in measured.entries[-3:]] == ["identity", "mean", "position0"]
    write_table(measured.table(draws=20), tmp_path / "evaluation.csv")
    table = read_file(tmp_path / "evaluation.csv")
    keys = ["dictionary", "method", "role", "k"]
    found = {tuple(row) for row in table[keys].drop_duplicates().dropna().itertuples(index=False)}
    of_method = {(method, role) for _, method, role, _ in found}
    assert {("random_init_topk", "topk", "rays", 2), ("mean_k4", "topk", "rays", 4)} <= found
    assert ("frozen_x", "abstopk", "directions", 2) in found
    assert of_method >= {("topk", "baseline"), ("pca_topk", "baseline"), ("mine", "control")}
    shown = rows(table)
    assert list(dict.fromkeys(shown["role"])) == ["reference", "control", "baseline", "directions", "rays"]
    learned, baselines = shown[shown["role"].isin(("rays", "directions"))], shown[shown["role"] == "baseline"]
    assert set(learned["dictionary"]) == set(named)
    assert set(baselines["family"]) == {"topk", "pca_topk"}
