"""Rows that learned dictionaries begin with: a stream of the seed for each kind, shared if asked; caps around them.

N vectors, D site width, L latents.
"""

import json
from itertools import combinations

import pytest
import torch

from rayscope.dictionaries import AbsTopK, BatchTopK, BottleneckTopK, Learned, TopK, load
from rayscope.dictionaries.base import KINDS
from rayscope.dictionaries.learned.rows import drawn_rows
from rayscope.studies.rays_vs_directions.study import makers

pytestmark = pytest.mark.usefixtures("one_thread")
L, D = 128, 256
OWN = {"bottleneck_topk": {"rank": 3}, "token_bias_topk": {"vocabulary": 11}}  # arguments that only these take


def rows(kind, latents=L, **arguments):
    cls = kind if isinstance(kind, type) else KINDS[kind]
    return cls(D, latents, 4, **OWN.get(cls.kind, {}), **arguments).W_dec_LD.detach()


def greatest_cosine(a_LD, b_LD):
    return (a_LD @ b_LD.T).abs().max().item()


def test_kinds_of_one_seed_are_as_far_apart_as_random_rows_are():
    """The greatest of 16,384 cosines of random rows in 256 dimensions is about 4.2 / 16."""
    ours = [kind for kind, cls in KINDS.items() if issubclass(cls, Learned) and cls.__module__.startswith("rayscope")]
    assert len(ours) == 12
    drawn = {kind: rows(kind, seed=3) for kind in sorted(ours)}
    chance = torch.randn(2, L, D, generator=torch.Generator().manual_seed(1))
    random = greatest_cosine(*torch.nn.functional.normalize(chance, dim=2))
    for one, other in combinations(drawn, 2):
        assert greatest_cosine(drawn[one], drawn[other]) < 1.25 * random
    assert greatest_cosine(drawn["topk"], rows(TopK, seed=4)) < 1.25 * random


def test_rows_depend_on_seed_and_kind_and_on_nothing_else():
    drawn_LD = rows(TopK, seed=3)
    torch.testing.assert_close(drawn_LD.norm(dim=1), torch.ones(L))
    for same in ({"decoder": "frozen"}, {"decoder": "soft_frozen"}, {"encoder": "frozen"}, {"lr": 0.1}):
        assert rows(TopK, seed=3, **same).equal(drawn_LD)
    assert TopK(D, L, 32, seed=3).W_dec_LD.equal(drawn_LD)
    assert rows(TopK, seed=3, latents=L // 2).equal(drawn_LD[: L // 2])


def test_kinds_that_ask_for_the_same_rows_get_them(tmp_path):
    shared = {"seed": 3, "initial_rows": "pair"}
    dictionary = AbsTopK(D, L, 4, decoder="soft_frozen", **shared)
    assert dictionary.W_dec_LD.equal(rows(TopK, **shared))
    assert dictionary.W_dec_LD.equal(drawn_rows(L, D, 3, "pair"))
    assert rows(BatchTopK, seed=3, initial_rows="topk").equal(rows(TopK, seed=3))
    again = load(dictionary.save(tmp_path / "d"))
    assert again.arguments()["initial_rows"] == "pair"
    assert again.initial_LD.equal(dictionary.initial_LD)
    for name in ("", 3):
        with pytest.raises(ValueError, match=f"initial_rows={name!r} must be a name or null"):
            TopK(D, L, 4, initial_rows=name)


def test_arms_of_rays_vs_directions_begin_with_the_same_rows():
    arms = {name: make(width=D, k=4, seed=2).W_dec_LD.detach() for name, make in makers(m=64, rank=8).items()}
    first_mD = arms["C_rays_m"]
    assert first_mD.shape == (64, D)
    assert len(arms) == 6
    for rows_LD in arms.values():
        assert rows_LD[:64].equal(first_mD)


@pytest.mark.parametrize("cls", [TopK, BottleneckTopK])
def test_soft_frozen_rows_that_were_drawn_otherwise_are_not_trained_on(cls, tmp_path):
    """As in a file of a version that drew other rows: here the seed in config.json is changed."""
    folder = cls(16, 40, 4, seed=3, decoder="soft_frozen", **OWN.get(cls.kind, {})).save(tmp_path / "d")
    load(folder).unfold()
    config = json.loads((folder / "config.json").read_text())
    config["arguments"]["seed"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"of 40 soft-frozen rows are not within cosine 0\.8 of the rows that their"):
        load(folder).unfold()
