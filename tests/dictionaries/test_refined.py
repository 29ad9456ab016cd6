"""Refined codes, with and without refine.c. N vectors, D site width, L latents, K codes."""

import re

import pytest
import torch
from torch.nn import functional as F

from helpers import randn
from rayscope.dictionaries import KINDS, AbsTopK, BatchTopK, BottleneckTopK, TopK, load, recoded
from rayscope.dictionaries.sparse import native, refine
from rayscope.dictionaries.sparse.refine import STAGES, refine_codes

SPARSE = [kind for kind in KINDS if "topk" in kind]


@pytest.fixture(params=["refine.c", "pytorch"])
def way(request, monkeypatch):
    if request.param == "pytorch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C compiler here")


def problem(N=40, D=21, L=96, S=24, signed=False):
    """Vectors of a few rows and noise, unit rows, and candidates by an encoder that is roughly right."""
    W_LD = F.normalize(randn(L, D, seed=1))
    z_NL = randn(N, L, seed=2).abs() * (randn(N, L, seed=3) > 1.6)
    x_ND = (z_NL * (randn(N, L, seed=4).sign() if signed else 1)) @ W_LD + 0.1 * randn(N, D, seed=5)
    pre_NL = x_ND @ (W_LD + 0.15 * randn(L, D, seed=6)).T
    candidates_NS = (pre_NL.abs() if signed else pre_NL).topk(S, sorted=False).indices
    return x_ND, W_LD, candidates_NS, pre_NL.gather(1, candidates_NS)


def by_hand(x_D, W_LD, candidates_S, pre_S, own, times, signed):
    """{latent: code} of one vector, as the equations say it, in numpy's least squares."""
    score = pre_S.abs() if signed else pre_S
    ranked = [int(c) for c in candidates_S[score.argsort(descending=True)]][: times * own]
    support, open_rows = ranked[: own // 2], ranked[own // 2 :]
    x, W = x_D.double(), W_LD.double()

    def least_squares(support):
        while support:
            z = torch.linalg.lstsq(W[support].T, x[:, None]).solution[:, 0]
            kept = [row for row, code in zip(support, z, strict=True) if signed or code > 0]
            if kept == support:
                return dict(zip(support, z.tolist(), strict=True))
            support = kept
        return {}

    codes = least_squares(support)
    for stage in range(1, STAGES + 1):
        aim = own // 2 + (own - own // 2) * stage // STAGES
        r = x - sum(code * W[row] for row, code in codes.items()) if codes else x
        slope = {row: abs(float(r @ W[row])) if signed else float(r @ W[row]) for row in open_rows}
        new = [row for row in sorted(open_rows, key=lambda row: -slope[row]) if slope[row] > 0]
        new = new[: max(0, aim - len(codes))]
        open_rows = [row for row in open_rows if row not in new]
        codes = least_squares([*codes, *new])
    own_codes = {
        row: float(p if signed else p.clamp_min(0)) for row, p in zip(candidates_S.tolist(), pre_S, strict=True)
    }
    own_codes = {row: own_codes[row] for row in ranked[:own] if own_codes[row] != 0}
    error = lambda codes: float((x - sum(code * W[row] for row, code in codes.items())).norm())  # noqa: E731
    return codes if not codes or error(codes) <= error(own_codes) else own_codes


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("own", [1, 2, 5, 8])
def test_codes_are_those_of_the_equations(signed, own, way):
    x_ND, W_LD, candidates_NS, pre_NS = problem(signed=signed)
    own_N = torch.full((len(x_ND),), own)
    own_N[::3] -= 1
    indices_NK, values_NK = refine_codes(x_ND, W_LD, candidates_NS, pre_NS, own_N, 2, signed)
    assert indices_NK.shape == (len(x_ND), own)
    for n, (x_D, candidates_S, pre_S) in enumerate(zip(x_ND, candidates_NS, pre_NS, strict=True)):
        expected = by_hand(x_D, W_LD, candidates_S, pre_S, int(own_N[n]), 2, signed)
        codes = {int(i): float(v) for i, v in zip(indices_NK[n], values_NK[n], strict=True) if v != 0}
        assert codes == pytest.approx(expected, rel=1e-3, abs=1e-4), n


@pytest.mark.parametrize("signed", [False, True])
def test_both_ways_agree(signed, monkeypatch):
    if native.library() is None:
        pytest.skip("no C compiler here")
    problem_ = problem(N=300, D=37, S=32, signed=signed)
    arguments = *problem_, torch.full((300,), 8), 4, signed
    compiled = dense(refine_codes(*arguments), 96)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(refine, "CHUNK", 7 * 32 * 37)  # 7 vectors at a time
    torch.testing.assert_close(dense(refine_codes(*arguments), 96), compiled, rtol=1e-3, atol=1e-4)


def dense(codes, L):
    indices_NK, values_NK = codes
    return torch.zeros(len(indices_NK), L).scatter_add_(1, indices_NK, values_NK)


def test_a_row_that_others_span_gets_no_second_code(way):
    W_LD = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    x_ND, candidates_NS = torch.tensor([[2.0, 1.0, 0.5]]), torch.tensor([[0, 1, 2]])
    codes = refine_codes(x_ND, W_LD, candidates_NS, torch.tensor([[2.0, 1.9, 0.5]]), torch.tensor([3]), 1, True)
    torch.testing.assert_close(dense(codes, 3) @ W_LD, torch.tensor([[2.0, 1.0, 0.0]]))


def test_the_outcome_does_not_depend_on_threads_or_batches(way):
    x_ND, W_LD, candidates_NS, pre_NS = problem(N=50)
    own_N = torch.arange(50) % 9
    whole = dense(refine_codes(x_ND, W_LD, candidates_NS, pre_NS, own_N, 2, False), 96)
    part = dense(refine_codes(x_ND[20:], W_LD, candidates_NS[20:], pre_NS[20:], own_N[20:], 2, False), 96)
    torch.testing.assert_close(whole[20:], part, rtol=1e-5, atol=1e-6)
    assert ((whole != 0).sum(1) <= own_N).all()


def made(kind, refine, N=64, D=24):
    more = {"token_bias_topk": {"vocabulary": 11}, "bottleneck_topk": {"rank": 3}}.get(kind, {})
    dictionary = KINDS[kind](D, 128, 6, seed=0, refine=refine, **more)
    x_ND, tokens_N = 3 * randn(256, D, seed=1) + 1, torch.arange(256) % 11
    dictionary.prepare(x_ND, dead_window=1000, tokens_N=tokens_N)
    with torch.no_grad():
        dictionary.W_enc_LD += 0.3 * randn(128, D, seed=2) / D**0.5
        dictionary.project_weights()
        dictionary.calibrate(x_ND, tokens_N)
    return dictionary, x_ND[:N], tokens_N[:N]


@pytest.mark.parametrize("kind", SPARSE)
def test_no_vector_is_worse_off_nor_has_more_codes(kind):
    dictionary, x_ND, tokens_N = made(kind, None)
    refined = dictionary.refined()
    own, better = dictionary.encode_sparse(x_ND, tokens_N), refined.encode_sparse(x_ND, tokens_N)
    error = lambda codes: (x_ND - dictionary.decode_sparse(codes, tokens_N)).norm(dim=1)  # noqa: E731
    assert (error(better) <= error(own) * (1 + 1e-5)).all()
    assert error(better).square().sum() < 0.95 * error(own).square().sum()
    most = own.offsets.diff() if dictionary.adaptive else dictionary.k + dictionary.dense
    assert (better.offsets.diff() <= most).all()
    rays = better.indices_M < dictionary.latents - dictionary.dense
    assert dictionary.signed or (better.values_M[rays] > 0).all()


@pytest.mark.parametrize("kind", SPARSE)
def test_refine_is_saved_and_folding_changes_no_code(kind, tmp_path):
    dictionary, x_ND, tokens_N = made(kind, 3)
    loaded = load(dictionary.save(tmp_path / "d"))
    assert loaded.refine == 3
    codes, same = dictionary.encode(x_ND, tokens_N), loaded.encode(x_ND, tokens_N)
    torch.testing.assert_close(same, codes, rtol=2e-3, atol=2e-3)
    assert loaded.with_k(2).refine == 3
    assert recoded(load(made(kind, None)[0].save(tmp_path / "plain")), "refined").refine == 2


@pytest.mark.parametrize("kind", SPARSE)
def test_losses_are_those_of_the_codes_as_they_are(kind):
    (plain, x_ND, tokens_N), (refined, _, _) = made(kind, None), made(kind, 2)
    for name, loss in plain.losses(x_ND, tokens_N).items():
        assert loss.equal(refined.losses(x_ND, tokens_N)[name])


def test_codes_are_orthogonal_to_what_they_leave():
    dictionary, x_ND, _ = made("abstopk", 2)
    codes = dictionary.encode_sparse(x_ND)
    residual_ND = x_ND - dictionary.decode_sparse(codes)
    along_M = (residual_ND[codes.rows_M] * dictionary.directions[codes.indices_M]).sum(1)
    assert (along_M.abs() < 1e-4 * x_ND.norm(dim=1).max()).float().mean() > 0.95  # the rest kept its own codes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"refine": 0}, "refine=0 candidates for each code must be at least 1 (null: codes are not refined)"),
        ({"refine": True}, "refine=True must be a whole number"),
        ({"refine": 2, "whiten": True}, "refine=2 with whiten=True: refined codes are least squares in x; choose one"),
    ],
)
def test_refine_is_checked(arguments, said):
    for kind in (TopK, AbsTopK, BatchTopK, BottleneckTopK):
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            kind(32, 64, 4, **arguments)


def test_other_kinds_have_none():
    with pytest.raises(ValueError, match="coder='refined': a gated dictionary has no codes of k latents to refine"):
        recoded(KINDS["gated"](8, 16, 2), "refined")
