"""Revival: what a latent becomes that was silent for the dead window, and which are left alone. L latents."""

import pytest
import torch
from torch.nn import functional as F

from helpers import fit, planted_world, randn, sample
from rayscope.dictionaries import AbsTopK, JumpReLU, TiedTopK, TopK
from rayscope.dictionaries.learned import base
from rayscope.dictionaries.learned.firing import Firing
from rayscope.dictionaries.learned.revival import revive, spread_evenly


def test_vectors_are_spread_evenly_over_the_squared_residual_each_once():
    assert spread_evenly(torch.tensor([1.0, 0, 3]), 2).tolist() == [0, 2]  # at 1 and 3 of 4
    assert spread_evenly(torch.tensor([1.0, 0, 3]), 4).tolist() == [0, 2]  # at .5, and three times in the last
    assert spread_evenly(torch.ones(6), 3).tolist() == [0, 2, 4]  # at 1, 3 and 5 of 6
    assert spread_evenly(torch.zeros(3), 2).tolist() == []


def test_once_per_dead_window_until_it_fires():
    firing, due = Firing(2), []
    firing.dead_window.fill_(250)
    for _ in range(8):
        firing.count(torch.tensor([1]), tokens=100)
        due.append(firing.due_L(100).tolist())
    assert [one for one, _ in due] == [False, False, True, False, True, False, False, True]  # at 300, 500 and 800
    assert not any(other for _, other in due)


def one_due(cls, **arguments):
    """A dictionary whose latent 2 is due, and a residual that lies along one axis alone, at vector 1."""
    dictionary = cls(4, 6, 2, seed=0, **arguments)
    with torch.no_grad():
        dictionary.W_enc_LD *= torch.arange(1.0, 7)[:, None]  # lengths 1 to 6
        for parameter in dictionary.parameters():
            if parameter.shape == (6,):
                parameter.copy_(torch.tensor([0.0, 1, 50, 2, 3, 4]))
    dictionary.firing.dead_window.fill_(100)
    dictionary.firing.silent_L[2] = 120
    residual_ND = torch.zeros(3, 4)
    residual_ND[1, 3] = -7.0
    return dictionary, dictionary.firing.due_L(50), residual_ND


@pytest.mark.parametrize("cls", [TopK, AbsTopK, JumpReLU])
def test_it_starts_from_the_residual_at_the_live_latents_thresholds(cls):
    dictionary, due_L, residual_ND = one_due(cls)
    others = {name: value.clone() for name, value in dictionary.state_dict().items()}
    revive(dictionary, due_L, residual_ND)
    assert dictionary.W_dec_LD[2].tolist() == [0, 0, 0, -1]
    length = 0.5 * (1 + 2 + 4 + 5 + 6) / 5
    torch.testing.assert_close(dictionary.W_enc_LD[2], torch.tensor([0, 0, 0, -length]))
    thresholds = [value[2].item() for value in dictionary.parameters() if value.shape == (6,)]
    assert thresholds == [2.0] * len(thresholds)
    for name, value in dictionary.state_dict().items():
        if value.shape[:1] == (6,):
            assert torch.equal(value[~due_L], others[name][~due_L]), name


@pytest.mark.parametrize("decoder", ["frozen", "soft_frozen"])
def test_a_decoder_that_is_frozen_stays_and_its_encoder_follows_it(decoder):
    dictionary, due_L, residual_ND = one_due(TopK, decoder=decoder)
    before = dictionary.W_dec_LD.clone()
    revive(dictionary, due_L, residual_ND)
    assert torch.equal(dictionary.W_dec_LD, before)
    assert F.cosine_similarity(dictionary.W_enc_LD[2], before[2], dim=0).item() == pytest.approx(1, abs=1e-6)


def test_a_frozen_encoder_stays():
    dictionary, due_L, residual_ND = one_due(TopK, encoder="frozen")
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    revive(dictionary, due_L, residual_ND)
    assert all(torch.equal(value, before[name]) for name, value in dictionary.state_dict().items())


def test_of_opposite_rays_only_pairs_that_are_both_dead():
    dictionary = TiedTopK(8, 12, 3, lr=1e-2)
    dictionary.prepare(sample(D=8), dead_window=300)
    dictionary.firing.silent_L[[0, 6, 1]] = 10**6  # latent 0 and its partner; latent 1, whose partner lives
    dictionary.firing.silent_L[[0, 6, 1]] -= 10**6 % 300
    due_L = dictionary.due(dictionary.firing.due_L(200))
    assert due_L.nonzero()[:, 0].tolist() == [0, 6]
    before = dictionary.W_dec_LD.clone()
    with torch.no_grad():
        revive(dictionary, due_L, randn(200, 8))
        dictionary.project_weights()
    assert torch.equal(dictionary.W_dec_LD[6:], -dictionary.W_dec_LD[:6])
    torch.testing.assert_close(dictionary.W_dec_LD[1:6], before[1:6])
    assert not torch.equal(dictionary.W_dec_LD[0], before[0])


def dead_and_fvu(cls, D, L, k, features, steps, **arguments):
    """On fresh vectors, after so many steps at a rate that kills."""
    _, x_ND = planted_world(D, features, k, steps * 128 + 8192, seed=0)
    test_ND, x_ND = x_ND[:8192], x_ND[8192:]
    dictionary = cls(D, L, k, seed=0, lr=3e-2, **arguments)
    dictionary.prepare(x_ND[:4096], dead_window=len(x_ND) // 10)
    fit(dictionary, x_ND.split(128), lambda step: min(1.0, (steps - step) / (0.2 * steps)))
    codes = dictionary.encode_sparse(test_ND)
    missed, spread = (test_ND - dictionary.decode_sparse(codes)).square().sum(), (test_ND - test_ND.mean(0)).square()
    return (codes.indices_M.bincount(minlength=L) == 0).float().mean().item(), (missed / spread.sum()).item()


@pytest.mark.slow
def test_fewer_are_dead_and_more_is_explained_than_without(monkeypatch, one_thread):
    sizes = {"D": 32, "L": 256, "k": 3, "features": 400, "steps": 300}
    dead, fvu = dead_and_fvu(TopK, **sizes)
    monkeypatch.setattr(base, "revive", lambda *_: None)
    dead_without, fvu_without = dead_and_fvu(TopK, **sizes)
    assert dead < dead_without - 0.1
    assert fvu < fvu_without - 0.005


@pytest.mark.slow
@pytest.mark.parametrize("cls", [TopK, AbsTopK])
def test_auxk_alone_brings_dead_latents_back(cls, monkeypatch, one_thread):
    """It did the opposite to signed ones while they coded x."""
    sizes = {"D": 16, "L": 128, "k": 4, "features": 100, "steps": 200}
    monkeypatch.setattr(base, "revive", lambda *_: None)
    assert dead_and_fvu(cls, **sizes)[0] < 0.15 < 0.3 < dead_and_fvu(cls, **sizes, auxk=0)[0]
