"""Planted worlds: what was asked is what is drawn, and a dictionary can find it."""

import pytest
import torch

from rayscope.baselines import pca
from rayscope.dictionaries import TopK
from rayscope.streams.planted import World
from rayscope.streams.statistics import Moments
from rayscope.streams.stream import Batch
from rayscope.training.train import train
from toys import mcc

pytestmark = pytest.mark.usefixtures("one_thread")
N = 40_000
ASKED = {"bipolar": 0.3, "cofiring": 0.5, "hierarchy": 0.25, "seed": 4}


@pytest.fixture(scope="module", params=["zipf", "uniform"])
def drawn(request):
    world = World(60, 16, 4.0, firing=request.param, **ASKED)
    stream = world.stream("train", N, batch_size=N)
    return world, stream[0], stream.codes(0)


def near(found: torch.Tensor, p: torch.Tensor, n) -> bool:
    """Within five binomial standard errors."""
    return bool(((found - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all())


def test_rates_l0_and_order(drawn):
    world, _, codes = drawn
    fires_NF = codes.dense() != 0
    assert near(fires_NF.float().mean(0), world.rate_F, N)
    assert world.rate_F.sum().item() == pytest.approx(4.0, rel=1e-5)
    assert len(codes.values_M) / N == pytest.approx(4.0, rel=0.03)
    assert (world.rate_F.diff() <= 0).all()
    assert world.rate_F.max() <= 0.5


def test_zipf_is_the_exponent_asked_below_the_cap():
    rate_F = World(1000, 8, 6.0, exponent=1.3, cap=0.4).rate_F.double()
    free_F = rate_F < 0.4 - 1e-6
    slope = rate_F[free_F].log().diff() / (torch.arange(1, 1001).double()[free_F].log().diff())
    torch.testing.assert_close(slope, torch.full_like(slope, -1.3), rtol=0, atol=1e-2)
    assert not free_F.all()
    assert rate_F.sum().item() == pytest.approx(6)
    assert World(100, 8, 6.0, firing="uniform").rate_F.tolist() == pytest.approx([0.06] * 100)


def test_signs_and_strengths(drawn):
    world, _, codes = drawn
    assert world.bipolar_F.sum() == 18
    z_NF = codes.dense()
    assert not (z_NF[:, ~world.bipolar_F] < 0).any()
    active_F, negative_F = (z_NF != 0).sum(0)[world.bipolar_F], (z_NF < 0).sum(0)[world.bipolar_F]
    assert near(negative_F / active_F, torch.tensor(0.5), active_F)
    sizes_M = codes.values_M.abs()
    assert sizes_M.min() >= 1
    assert sizes_M.mean().item() == pytest.approx(1 + (2 / torch.pi) ** 0.5, rel=0.01)


def test_a_child_fires_only_with_its_parent(drawn):
    world, _, codes = drawn
    fires_NF = codes.dense() != 0
    children = (world.parents_F >= 0).nonzero()[:, 0]
    assert len(children) == 15
    for child in children.tolist():
        parent = int(world.parents_F[child])
        assert world.parents_F[parent] == -1
        assert not (fires_NF[:, child] & ~fires_NF[:, parent]).any()
        assert near(fires_NF[fires_NF[:, parent], child].float().mean(), torch.tensor(0.3), fires_NF[:, parent].sum())


def test_partners_fire_together_and_others_do_not(drawn):
    world, _, codes = drawn
    fires_NF = (codes.dense() != 0).float()
    both_FF, p = fires_NF.T @ fires_NF / N, world.rate_F
    paired = (world.partners_F >= 0).nonzero()[:, 0]
    assert len(paired) == 22  # half of 45 roots, in pairs
    assert torch.equal(world.partners_F[world.partners_F[paired]], paired)
    mates = world.partners_F[paired]
    expected = 0.8 * torch.minimum(p[paired], p[mates]) + 0.2 * p[paired] * p[mates]
    assert near(both_FF[paired, mates], expected, N)
    alone = ((world.partners_F < 0) & (world.parents_F < 0)).nonzero()[:, 0]
    independent = both_FF[alone][:, alone] - torch.outer(p[alone], p[alone])
    assert independent.fill_diagonal_(0).abs().max() < 5 * (torch.outer(p[alone], p[alone]).max() / N) ** 0.5


def test_vectors_are_mean_and_rays_and_noise(drawn):
    world, batch, codes = drawn
    error_ND = batch.activations["planted"] - world.mean_D - codes.dense() @ world.rays_FD
    assert error_ND.std().item() == pytest.approx(0.02, rel=0.02)
    assert error_ND.mean(0).abs().max() < 5 * 0.02 / N**0.5
    torch.testing.assert_close(world.rays_FD.norm(dim=1), torch.ones(60))


def test_a_batch_depends_on_world_split_and_number_alone():
    world = World(60, 16, 4.0, **ASKED)
    stream, again = world.stream("train", 64 * 6, 64), World(60, 16, 4.0, **ASKED).stream("train", 64 * 99, 64)
    batches = list(stream)
    for number in (5, 0, 3):
        assert torch.equal(again[number].activations["planted"], batches[number].activations["planted"])
        assert torch.equal(again.codes(number).values_M, stream.codes(number).values_M)
    assert not torch.equal(world.stream("test", 64, 64)[0].activations["planted"], batches[0].activations["planted"])
    assert len(Batch.join(batches).documents_N.unique()) == 6
    assert not torch.equal(World(60, 16, 4.0, **(ASKED | {"seed": 5})).rays_FD, world.rays_FD)


@pytest.mark.slow
def test_topk_recovers_the_rays_and_pca_does_not(tmp_path):
    world = World(48, 24, 2.0, firing="uniform", seed=1)
    stream = world.stream("train", 512 * 300, 512)
    dictionary = TopK(24, 96, 2, lr=5e-3)
    train(stream, {world.site: {"topk": dictionary}}, tmp_path)
    moments = Moments()
    moments.update(Batch.join(world.stream("test", 20_000)).activations["planted"])
    assert mcc(world.rays_FD, dictionary.directions, signed=True) > 0.9
    assert mcc(world.rays_FD, pca(moments, 2, "topk").directions, signed=True) < 0.6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"firing": "often"}, "firing='often'; it is one of zipf, uniform"),
        ({"bipolar": 1.5}, r"bipolar=1\.5 is a share"),
        ({"l0": 6.0}, r"l0=6\.0 must be above 0 and at most 5, all features at cap=0\.5"),
        ({"hierarchy": 1.0}, "no root"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        World(**({"features": 10, "width": 4, "l0": 2.0} | options))
