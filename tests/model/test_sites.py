from types import SimpleNamespace

import pytest

from rayscope.model.sites import KINDS, Site, all_sites, expand, resolve

SIX = SimpleNamespace(layers=6, d_model=8, d_mlp=20)


def hooks(patterns) -> list[str]:
    return [site.hook for site in resolve(patterns, SIX)]


def test_every_site_has_its_width_layer_key_and_kind():
    sites = all_sites(SIX)
    assert len(sites) == 6 * len(KINDS) == len({site.key for site in sites})
    assert {site.width for site in sites if site.kind == "mlp.hook_post"} == {20}
    assert {site.width for site in sites if site.kind != "mlp.hook_post"} == {8}
    site = Site("blocks.3.mlp.hook_post", 20, 3)
    assert site in sites
    assert (site.key, site.kind) == ("blocks_3_mlp_hook_post", "mlp.hook_post")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.3.mlp.hook_post", ["blocks.3.mlp.hook_post"]),
        ("blocks.{2,4}.hook_resid_post", ["blocks.2.hook_resid_post", "blocks.4.hook_resid_post"]),
        ("blocks.{0, 2..4}.hook_mlp_out", [f"blocks.{i}.hook_mlp_out" for i in (0, 2, 3, 4)]),
        ("blocks.*.mlp.hook_post", [f"blocks.{i}.mlp.hook_post" for i in range(6)]),
        ("blocks.3.hook_resid_*", [f"blocks.3.hook_resid_{which}" for which in ("pre", "mid", "post")]),
        ("blocks.1.hook_{attn,mlp}_out", ["blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]),
        ("blocks.middle.hook_resid_post", ["blocks.3.hook_resid_post"]),
    ],
)
def test_patterns(pattern: str, expected: list[str]):
    assert hooks(pattern) == expected


def test_a_star_does_not_cross_dots():
    """`blocks.*.hook_post` must not find `blocks.0.mlp.hook_post`, nor `blocks.3.*` the site inside the MLP."""
    assert "blocks.3.mlp.hook_post" not in hooks("blocks.3.*")
    assert len(hooks("blocks.3.*")) == len(KINDS) - 1
    with pytest.raises(ValueError, match="no hook point"):
        hooks("blocks.*.hook_post")


def test_braces_nest_and_multiply():
    assert expand("{a,b}.{1..2}") == ["a.1", "a.2", "b.1", "b.2"]
    assert expand("plain") == ["plain"]


def test_order_is_that_of_computation_and_each_site_comes_once():
    asked = ["blocks.4.hook_resid_pre", "blocks.1.*", "blocks.1.mlp.hook_post", "blocks.1.hook_resid_post"]
    assert hooks(asked) == [f"blocks.1.{kind}" for kind in KINDS] + ["blocks.4.hook_resid_pre"]


def test_an_unknown_hook_point_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"'blocks.3.hook_residpost' in this model of 6 layers.*blocks.3.hook_resid_post"
    ):
        hooks("blocks.3.hook_residpost")
    with pytest.raises(ValueError, match=r"'blocks.6.hook_resid_post'.*nearest: blocks.\d.hook_resid_post"):
        hooks(["blocks.2.hook_resid_post", "blocks.{5..6}.hook_resid_post"])  # one good, one out of range


def test_a_name_that_is_like_none_gets_those_of_its_layer():
    """transformers' own name of what is blocks.2.hook_resid_post here."""
    with pytest.raises(ValueError, match=r"'transformer.h.2' .*nearest: blocks.2.hook_resid_pre, .*hook_resid_post$"):
        hooks("transformer.h.2")
    with pytest.raises(ValueError, match=r"'layer.99' .*nearest: blocks.3.hook_resid_pre, "):
        hooks("layer.99")


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ([], "none given"),
        (None, "null given"),
        (3, "3 given"),
        ([3], "3 given"),
        (["blocks.1.hook_mlp_out", None], "null given"),
        ("", "'' given"),
        ([" "], "' ' given"),
        ([["blocks.1.hook_mlp_out"]], r"\['blocks.1.hook_mlp_out'\] given"),
        ("blocks.(.hook_mlp_out", r"no hook point 'blocks.\(.hook_mlp_out'.*nearest: blocks"),
        ("blocks.{1,2.hook_mlp_out", r"no hook point 'blocks.\{1,2.hook_mlp_out'.*nearest: blocks"),
        ("blocks.{}.hook_mlp_out", r"no hook point 'blocks\.\.hook_mlp_out'.*nearest: blocks"),
        ("blocks.{4..2}.hook_mlp_out", r"\{4\.\.2\} runs down; write \{2\.\.4\}"),
        ("blocks.{0..999999999}.hook_mlp_out", "stands for more than 1000 names"),
        ("blocks.{0..99}{0..99}{0..99}{0..99}.hook_mlp_out", "stands for more than 1000 names"),
        ("blocks.{0..99999999999999}.hook_mlp_out", r"no hook point 'blocks.0\.\.9"),
        ("b" * 100_000, r"no hook point 'b{80}' in"),
    ],
)
def test_what_is_no_pattern_is_one_line(patterns, said: str):
    with pytest.raises(ValueError, match=rf"^sites.patterns: [^\n]*{said}"):
        hooks(patterns)
