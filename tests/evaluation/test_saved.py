"""A folder's dictionaries by site and name: of this model, at the site that each one says, none hidden by another."""

import pytest
import torch

from rayscope.dictionaries import Linear, TopK
from rayscope.evaluation.entry import named_entries, role_of
from rayscope.evaluation.saved import load_dictionaries
from rayscope.model.sites import Site
from rayscope.pipeline import named_or_headline

HOOK, MLP = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"


def save(folder, width: int = 32, **provenance):
    return TopK(width, 48, 4).save(folder, {"site": HOOK} | provenance)


def test_names_are_paths_without_the_site(model, tmp_path):
    save(tmp_path / "blocks_1_hook_resid_post/topk")
    save(tmp_path / "blocks_1_mlp_hook_post/topk", 128, site=MLP)
    save(tmp_path / "other/deeper/topk")
    found = {site.hook: list(named) for site, named in load_dictionaries(tmp_path, model).items()}
    assert found == {HOOK: ["topk", "other/deeper/topk"], MLP: ["topk"]}
    (alone,) = load_dictionaries(tmp_path / "other/deeper/topk", model).values()
    assert list(alone) == ["topk"]


def test_two_of_one_name_and_the_names_of_references(model, tmp_path):
    save(tmp_path / "blocks_1_hook_resid_post/topk")
    save(tmp_path / "topk")
    with pytest.raises(
        ValueError, match=r"/topk: .*/blocks_1_hook_resid_post/topk is called topk at blocks.1.hook_resid_post too"
    ):
        load_dictionaries(tmp_path, model)
    save(tmp_path / "mean")
    with pytest.raises(ValueError, match="mean is a row of every table"):
        load_dictionaries(tmp_path / "mean", model)


@pytest.mark.parametrize(
    ("provenance", "fact"),
    [
        ({"site": None}, r'does not say the site; write it there, as "provenance": {"site"'),
        ({"site": 5}, "provenance.site=5"),
        ({"site": ["a", HOOK]}, "provenance.site="),
        ({"site": "blocks.*.hook_resid_post"}, "is not one site of"),
        ({"site": "blocks.9.hook_resid_post"}, "nearest: "),
        ({"tokens": "many"}, "provenance.tokens='many', not a whole number"),
        ({"seed": 1.5}, "provenance.seed=1.5, not a whole number"),
        ({"input_scale": 0}, "provenance.input_scale=0, not a number that training wrote"),
        ({"input_scale": "1"}, "provenance.input_scale='1', not a number"),
        ({"log_coefficient": None}, "provenance.log_coefficient=None, not a number"),
        ({"model": "gpt2"}, "provenance.model='gpt2'"),
        ({"model": {"name": "x", "sha256": "0"}}, "trained on model x with other weights"),
        ({"model": {"name": "x", "architecture": {"layer_norm_epsilon": 0.5}}}, "with layer_norm_epsilon 0.5, but "),
    ],
)
def test_a_provenance_that_says_something_else(model, tmp_path, provenance, fact):
    folder = save(tmp_path / "topk", **provenance)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        load_dictionaries(tmp_path, model)
    assert str(raised.value).startswith(f"{folder}: ")
    assert fact in str(raised.value)


def test_a_role_that_is_none_of_a_given_dictionary_is_refused(model, tmp_path):
    given = Linear(32, 4, 1, "topk", torch.eye(4, 32))
    for role in ("control", "baseline"):
        given.save(tmp_path / "mine", {"site": HOOK, "role": role})
        ((_, named),) = load_dictionaries(tmp_path, model).items()
        assert role_of(named["mine"]) == role
    for role in ("rays", None, ["control"]):
        given.save(tmp_path / "mine", {"site": HOOK, "role": role})
        with pytest.raises(
            ValueError, match=r"mine: config.json has provenance.role=.* is neither baseline nor control"
        ):
            load_dictionaries(tmp_path, model)


def test_a_name_at_no_site_is_refused_and_one_at_some_site_is_not():
    rays, more = TopK(8, 16, 2), TopK(8, 16, 4)
    at = named_entries({Site(HOOK, 8, 1): {"topk": rays, "topk_k4": more}, Site(MLP, 8, 1): {"topk": rays}})
    hook, hook_k4, mlp = at
    assert named_or_headline(at, ["topk_k4"], 2) == [hook_k4]
    assert named_or_headline(at, "topk", 2) == [hook, mlp]
    assert named_or_headline(at, None, 2) == [hook, mlp]
    with pytest.raises(ValueError, match=r"features.names=topk,topk_k5: no topk_k5; nearest: topk_k4, topk"):
        named_or_headline(at, ["topk", "topk_k5"], 2)
    with pytest.raises(ValueError, match=r"features.names=: no name; nearest: topk, topk_k4"):
        named_or_headline(at, [], 2)
