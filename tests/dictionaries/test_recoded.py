"""A dictionary's directions under another coder. N vectors, D site width, L latents, r of them dense."""

import pytest
import torch
from torch.nn import functional as F

from helpers import planted_world, randn, randn64
from rayscope.dictionaries import (
    L1,
    BatchTopK,
    BottleneckTopK,
    Gated,
    JumpReLU,
    Linear,
    MatryoshkaBatchTopK,
    TokenBiasTopK,
    TopK,
    load,
    recoded,
)
from rayscope.dictionaries.coders import SEARCHES
from rayscope.evaluation.metrics import fvu


def prepared(dictionary, x_ND, tokens_N=None):
    dictionary.prepare(x_ND, dead_window=100, tokens_N=tokens_N)
    return dictionary.eval()


def test_directions_bias_sign_and_k_stay():
    learned = TopK(12, 30, 3, seed=1)
    with torch.no_grad():
        learned.W_enc_LD.copy_(randn64(30, 12, seed=9))  # a bad encoder of the same directions
        learned.b_dec_D.copy_(randn64(12, seed=3))
    x_ND = randn64(300, 12, seed=10).float()
    best = recoded(learned, "omp")
    assert (best.kind, best.k, best.signed, best.provenance["coder"]) == ("topk", 3, False, "omp")
    assert best.bits() == learned.bits()
    torch.testing.assert_close(best.directions, learned.directions.detach())
    torch.testing.assert_close(best.bias, learned.bias.detach())
    assert recoded(learned, "fista", 5).with_k(4).k == 4
    assert fvu(x_ND, best(x_ND)) < fvu(x_ND, recoded(learned, "topk")(x_ND))
    assert fvu(x_ND, best(x_ND)) < fvu(x_ND, learned(x_ND)) - 0.2  # the amortisation gap
    with pytest.raises(ValueError, match="coder='lasso'; it is one of topk, omp, pursuit, fista"):
        recoded(learned, "lasso")


@pytest.mark.parametrize("coder", SEARCHES)
def test_what_is_saved_of_it_has_its_codes(coder, tmp_path):
    x_ND = randn(40, 12, seed=2)
    best = recoded(prepared(TopK(12, 30, 3, seed=1), x_ND), coder)
    saved = load(best.save(tmp_path / "saved"))
    assert isinstance(saved, Linear)
    torch.testing.assert_close(saved.encode(x_ND), best.encode(x_ND), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="a batchtopk dictionary coded by omp reads its own encoder; save the"):
        recoded(BatchTopK(12, 30, 3), "omp").save(tmp_path / "adaptive")


@pytest.mark.parametrize("kind", [BatchTopK, MatryoshkaBatchTopK, JumpReLU, Gated, L1])
@pytest.mark.parametrize("coder", SEARCHES)
def test_adaptive_kinds_keep_each_vector_s_own_number_of_codes(kind, coder):
    x_ND = randn(200, 16, seed=3) + 0.5
    dictionary = prepared(kind(16, 48, 4, seed=1), x_ND)
    with torch.no_grad():
        if kind is L1:
            dictionary.b_enc_L -= 0.4
    own_N = dictionary.encode_sparse(x_ND).offsets.diff()
    assert own_N.unique().numel() > 4
    found = recoded(dictionary, coder)
    codes = found.encode_sparse(x_ND)
    assert found.adaptive
    assert (codes.offsets.diff() <= own_N).all()
    assert (codes.values_M > 0).all()
    assert found.mean_bits(own_N.bincount()) == dictionary.mean_bits(own_N.bincount())
    if coder in ("omp", "pursuit"):  # no more than D: after those nothing is left
        full_N = codes.offsets.diff() == own_N.clamp_max(16)
        assert full_N[own_N <= 4].double().mean() > 0.9  # some codes of rays become 0


def test_own_numbers_of_codes_beyond_the_width_are_cut():
    x_ND = randn(20, 6, seed=4)
    dictionary = prepared(BatchTopK(6, 40, 12, seed=1), x_ND)
    assert dictionary.encode_sparse(x_ND).offsets.diff().max() > 6
    best = recoded(dictionary, "omp")
    assert best.encode_sparse(x_ND).offsets.diff().max() <= 6
    assert fvu(x_ND, best(x_ND)) < 0.1


def test_dense_latents_stay_and_the_residual_is_coded():
    """By hand: rays along e0, e1 and a line along e2, bias 0."""
    dictionary = BottleneckTopK(4, 3, 1, rank=1)
    with torch.no_grad():
        rows = torch.eye(3, 4)
        dictionary.W_dec_LD.copy_(rows)
        dictionary.W_enc_LD.copy_(torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0.5, 0]]))  # rays the wrong way
    x_ND = torch.tensor([[3.0, 1, -8, 0], [1.0, 5, 2, 7]])
    assert dictionary.encode(x_ND).tolist() == [[0, 3, -4], [5, 0, 1]]
    assert recoded(dictionary, "omp").encode(x_ND).tolist() == [[3, 0, -4], [0, 5, 1]]
    assert recoded(dictionary, "omp")(x_ND).tolist() == [[3, 0, -4, 0], [0, 5, 1, 0]]


def test_what_is_known_of_the_token_stays_and_the_residual_is_coded():
    """By hand: token 1 is worth (0, 10, 0), token 0 nothing."""
    dictionary = TokenBiasTopK(3, 2, 1, vocabulary=2)
    with torch.no_grad():
        dictionary.W_dec_LD.copy_(torch.eye(2, 3))
        dictionary.B_VD[1, 1] = 10
    x_ND, tokens_N = torch.tensor([[2.0, 9, 0], [2.0, 9, 0]]), torch.tensor([0, 1])
    best = recoded(dictionary, "omp")
    assert best.encode(x_ND, tokens_N).tolist() == [[0, 9], [2, 0]]
    assert best(x_ND, tokens_N).tolist() == [[0, 9, 0], [2, 10, 0]]
    with pytest.raises(ValueError, match="reads the current token"):
        best.encode(x_ND)


def test_directions_of_any_length_are_used_at_unit_length():
    long = Linear(4, 3, 2, "topk", torch.eye(3, 4))
    long.directions_LD *= torch.tensor([[2.0], [1], [0]])  # the last one can have no code
    x_ND = torch.tensor([[4.0, 3, 2, 1]])
    for coder in SEARCHES:
        best = recoded(long, coder)
        torch.testing.assert_close(best.encode(x_ND), torch.tensor([[4.0, 3, 0]]), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(best(x_ND), torch.tensor([[4.0, 3, 0, 0]]), rtol=1e-3, atol=1e-3)


def test_a_dictionary_between_two_spaces_has_no_other_coder():
    class Across(TopK):
        @property
        def output_width(self):
            return 5

    with pytest.raises(ValueError, match="from width 4 to 5 has no other coder"):
        recoded(Across(4, 8, 2), "omp")


@pytest.mark.parametrize("kind", [TopK, BatchTopK, BottleneckTopK, TokenBiasTopK])
def test_omp_leaves_less_than_the_own_encoder_on_a_planted_world(kind):
    directions_FD, x_ND = planted_world(24, 64, 4, 2000, seed=1)
    tokens_N = torch.arange(len(x_ND)) % 5
    options = {BottleneckTopK: {"rank": 2}, TokenBiasTopK: {"vocabulary": 5}}.get(kind, {})
    dictionary = prepared(kind(24, 64, 4, seed=1, **options), x_ND, tokens_N)
    with torch.no_grad():
        for W_LD in (dictionary.W_dec_LD, dictionary.W_enc_LD):
            rays = len(W_LD) - dictionary.dense
            W_LD[:rays] = F.normalize(directions_FD)[:rays]
    own, best = dictionary(x_ND, tokens_N), recoded(dictionary, "omp")(x_ND, tokens_N)
    assert fvu(x_ND, best) < 0.8 * fvu(x_ND, own.detach())


def test_chunks_and_batches_of_any_size_change_nothing(monkeypatch):
    x_ND = randn(70, 12, seed=5)
    best = recoded(prepared(BatchTopK(12, 30, 3, seed=1), x_ND), "omp")
    whole = best.encode(x_ND)
    monkeypatch.setattr("rayscope.dictionaries.recoding.CHUNK", 16)
    torch.testing.assert_close(best.encode(x_ND), whole)
    assert len(best.encode_sparse(x_ND[:0])) == 0
    assert best.encode(x_ND[:1]).shape == (1, 30)
