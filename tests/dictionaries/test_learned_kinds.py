"""What sets kinds of dictionary apart: Matryoshka, tied pairs, a dense bottleneck, a token bias, on planted truths.

N vectors, D site width, L latents, F planted features.
"""

import pytest
import torch
from torch.nn import functional as F

from helpers import fit, randn, sample, tokens_of
from rayscope.dictionaries import (
    KINDS,
    AbsTopK,
    BottleneckTopK,
    Learned,
    MatryoshkaAbsTopK,
    MatryoshkaBatchTopK,
    MatryoshkaTopK,
    TiedTopK,
    TokenBiasTopK,
    TopK,
    load,
)
from rayscope.evaluation.entry import role_of

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, BATCH = 500, 512


def rate(step):
    return min(1.0, (step + 1) / 25, (STEPS - step) / (0.4 * STEPS))


def fires(N, firing_F, seed):
    """Sizes about 1 where a feature fires, 0 elsewhere."""
    generator = torch.Generator().manual_seed(7_368_787 + seed)
    fires_NF = torch.rand(N, len(firing_F), generator=generator) < firing_F
    return fires_NF * (1 + 0.25 * torch.randn(N, len(firing_F), generator=generator).abs())


def learn(dictionary, x_ND, tokens_N):
    """STEPS batches of the world, by turns."""
    parts = len(x_ND) // BATCH
    dictionary.prepare(x_ND[:4096], dead_window=20_000, tokens_N=tokens_N[:4096])
    places = [slice(step % parts * BATCH, (step % parts + 1) * BATCH) for step in range(STEPS)]
    tokens = (tokens_N[place] for place in places)
    fit(dictionary, (x_ND[place] for place in places), rate, lambda _: next(tokens))
    return dictionary.eval()


def fvu(dictionary, x_ND, tokens_N):
    missed_ND = x_ND - dictionary(x_ND, tokens_N)
    return (missed_ND.square().sum() / (x_ND - x_ND.mean(0)).square().sum()).item()


def recovered(planted_FD, directions_LD):
    """Mean over the planted directions of the greatest cosine."""
    return (planted_FD @ directions_LD.detach().T).max(1).values.mean().item()


def ends(dictionary, latents):
    """Their directions, and where those are signed the opposite ones."""
    found_LD = dictionary.directions[latents]
    return torch.cat([found_LD, -found_LD]) if dictionary.signed else found_LD


@pytest.mark.slow
@pytest.mark.parametrize("cls", [MatryoshkaTopK, MatryoshkaAbsTopK, MatryoshkaBatchTopK])
def test_the_inner_group_holds_the_frequent_features(cls):
    D, features, frequent, inner = 32, 48, 8, 12
    planted_FD = F.normalize(randn(features, D, seed=1))
    firing_F = torch.cat([torch.full((frequent,), 0.15), torch.full((features - frequent,), 0.02)])
    x_ND = fires(60_000, firing_F, 0) @ planted_FD
    none_N = torch.zeros(len(x_ND), dtype=torch.int64)
    nested = learn(cls(D, 64, 3, seed=0, lr=4e-3, groups=[inner, 64]), x_ND, none_N)
    (plain,) = (base for base in cls.__mro__ if base.__dict__.get("kind") == cls.kind.removeprefix("matryoshka_"))
    plain = learn(plain(D, 64, 3, seed=0, lr=4e-3), x_ND, none_N)
    assert recovered(planted_FD[:frequent], ends(nested, slice(inner))) > 0.9
    assert recovered(planted_FD[:frequent], ends(nested, slice(inner, None))) < 0.85
    assert recovered(planted_FD[:frequent], ends(plain, slice(inner))) < 0.75  # where an index means nothing


def test_matryoshka_s_loss_is_the_mean_over_its_prefixes():
    dictionary = MatryoshkaTopK(2, 3, 2, groups=[1, 3])
    with torch.no_grad():
        dictionary.W_dec_LD.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        dictionary.W_enc_LD.copy_(dictionary.W_dec_LD)
    x_ND = torch.tensor([[2.0, 1.0], [-3.0, -1.0]])  # z = (2, 1, 0) and (0, 0, 3)
    spread = 2 * 2.5**2 + 2 * 1.0**2
    passed = dictionary.training_pass(x_ND)
    first, whole = (1 + 10) / spread, 1 / spread
    assert passed.losses["reconstruction"].item() == pytest.approx((first + whole) / 2)
    assert passed.fvu.item() == pytest.approx(whole)


def test_one_group_of_all_latents_is_the_plain_kind():
    x_ND, batches = sample(), [sample(seed=step + 1) for step in range(5)]
    one, plain = MatryoshkaTopK(16, 40, 4, lr=1e-2, groups=[40], initial_rows="topk"), TopK(16, 40, 4, lr=1e-2)
    for dictionary in (one, plain):
        dictionary.prepare(x_ND, 1000)
        fit(dictionary, batches)
    torch.testing.assert_close(one.W_enc_LD, plain.W_enc_LD)
    torch.testing.assert_close(one.W_dec_LD, plain.W_dec_LD)


@pytest.mark.parametrize("groups", [[], [0, 40], [20, 10, 40], [20, 20, 40], [10, 20], [40, 80]])
def test_bad_groups(groups):
    with pytest.raises(ValueError, match="must rise from at least 1 to the 40 latents"):
        MatryoshkaTopK(16, 40, 4, groups=groups)


def test_default_groups():
    assert MatryoshkaTopK(16, 2048, 4).groups == [128, 512, 1024, 2048]
    assert MatryoshkaTopK(4, 3, 1).groups == [1, 3]


def test_tied_rays_without_biases_are_absolute_topk():
    m, k, x_ND = 20, 4, sample(seed=7)
    tied, signed = TiedTopK(16, 2 * m, k, seed=3, auxk=0), AbsTopK(16, m, k, auxk=0)
    with torch.no_grad():
        for one, other in ((signed.W_dec_LD, tied.W_dec_LD), (signed.W_enc_LD, tied.W_enc_LD)):
            one.copy_(other[:m])
    for dictionary in (tied, signed):
        dictionary.prepare(sample(), 10**6)
        losses = dictionary.losses(x_ND)
        losses["reconstruction"].backward()
        dictionary.project_gradients()
    z_NL = tied.encode(x_ND)
    torch.testing.assert_close(z_NL[:, :m] - z_NL[:, m:], signed.encode(x_ND))
    assert ((z_NL[:, :m] == 0) | (z_NL[:, m:] == 0)).all()
    torch.testing.assert_close(tied(x_ND), signed(x_ND))
    for name in ("W_dec_LD", "W_enc_LD"):  # the gradient of m free rows, and its norm
        found_LD, right_mD = getattr(tied, name).grad, getattr(signed, name).grad
        torch.testing.assert_close(found_LD[:m], right_mD / 2**0.5)
        torch.testing.assert_close(found_LD.norm(), right_mD.norm())


def test_pairs_stay_tied_and_a_file_holds_one_row_of_each(tmp_path):
    dictionary = TiedTopK(16, 40, 4, seed=3, lr=1e-2)
    dictionary.prepare(sample(), 600)
    fit(dictionary, [sample(seed=step + 1) for step in range(20)])
    for W_LD in (dictionary.W_enc_LD, dictionary.W_dec_LD):
        assert W_LD[:20].equal(-W_LD[20:])
    assert not dictionary.b_enc_L[:20].allclose(dictionary.b_enc_L[20:])  # one bias per ray
    assert dictionary.weights()["W_dec_LD"].shape == (20, 16)
    with pytest.raises(ValueError, match="latents=41 must be even"):
        TiedTopK(16, 41, 4)


@pytest.mark.slow
def test_tied_rays_recover_lines():
    planted_FD = F.normalize(randn(24, 32, seed=2))
    sign_NF = torch.randn(60_000, 24, generator=torch.Generator().manual_seed(5)).sign()
    x_ND = (fires(60_000, torch.full((24,), 0.06), 1) * sign_NF) @ planted_FD
    none_N = torch.zeros(len(x_ND), dtype=torch.int64)
    tied = learn(TiedTopK(32, 64, 2, seed=0, lr=4e-3), x_ND, none_N)
    assert recovered(planted_FD, tied.directions) > 0.9
    assert recovered(-planted_FD, tied.directions) > 0.9  # both ends, as rays


@pytest.mark.slow
def test_a_bottleneck_takes_what_is_dense_and_leaves_the_rays_what_is_sparse():
    D, features, rank = 32, 40, 4
    planted_FD = F.normalize(randn(features, D, seed=3))
    dense_rD = torch.linalg.qr(randn(D, rank, seed=4)).Q.T
    N = 60_000
    x_ND = fires(N, torch.full((features,), 0.05), 2) @ planted_FD
    x_ND += 1.5 * randn(N, rank, seed=5) @ dense_rD
    none_N = torch.zeros(N, dtype=torch.int64)
    learned = learn(BottleneckTopK(D, 68, 3, rank=rank, seed=0, lr=4e-3), x_ND, none_N)
    plain = learn(TopK(D, 68, 3, seed=0, lr=4e-3), x_ND, none_N)
    spanned = torch.linalg.svdvals(dense_rD @ torch.linalg.qr(learned.directions[-rank:].detach().T).Q)
    assert spanned.min() > 0.95  # the cosine of the greatest angle between the two subspaces
    across_FD = F.normalize(planted_FD - planted_FD @ dense_rD.T @ dense_rD)
    assert recovered(across_FD, learned.directions[:-rank] - learned.directions[:-rank] @ dense_rD.T @ dense_rD) > 0.8
    assert fvu(learned, x_ND, none_N) < 0.5 * fvu(plain, x_ND, none_N)


def test_a_later_stage_begins_where_the_saved_one_stood(tmp_path):
    """What is not in a file: the rows near which a soft-frozen decoder stays, how often a token was seen."""
    x_ND, tokens_N = sample(), tokens_of(sample())
    bottleneck = BottleneckTopK(16, 40, 4, rank=3, decoder="soft_frozen")
    bottleneck.prepare(x_ND, 100)
    told = TokenBiasTopK(16, 40, 4, vocabulary=int(tokens_N.max()) + 2)
    told.prepare(x_ND, 100, tokens_N=tokens_N)
    for dictionary in (bottleneck, told):
        again = load(dictionary.save(tmp_path / dictionary.kind))
        again.unfold()
        before = again.W_dec_LD.clone()
        again.project_weights()
        torch.testing.assert_close(again.W_dec_LD, before)
        if dictionary is told:
            assert again.seen_V.equal(told.memory * (told.seen_V > 0))


def test_bottleneck_counts_its_dense_latents_apart():
    dictionary = BottleneckTopK(16, 40, 4, rank=3, decoder="soft_frozen")
    dictionary.prepare(sample(), 100)
    assert dictionary.initial_LD.equal(dictionary.W_dec_LD)  # kept near where they start, not where they were drawn
    assert (dictionary.latents, dictionary.dense, dictionary.k) == (40, 3, 4)
    principal_rD = torch.linalg.svd(sample() - sample().mean(0)).Vh[:3]
    torch.testing.assert_close((dictionary.directions[-3:] @ principal_rD.T).abs(), torch.eye(3), rtol=0, atol=1e-3)
    for arguments, message in (
        ({"k": 38, "rank": 3}, "k=38 exceeds the 37 rays"),
        ({"k": 4, "rank": 17}, "rank=17"),
        ({"k": 4, "rank": 0}, "rank=0"),
    ):
        with pytest.raises(ValueError, match=message):
            BottleneckTopK(16, 40, **arguments)


@pytest.mark.slow
def test_a_token_bias_is_the_tokens_means_and_leaves_the_rays_the_rest():
    D, features, V, N = 32, 40, 50, 60_000
    planted_FD = F.normalize(randn(features, D, seed=6))
    means_VD = 1.5 * F.normalize(randn(V, D, seed=7))
    tokens_N = torch.randint(V, (N,), generator=torch.Generator().manual_seed(11))
    x_ND = means_VD[tokens_N] + fires(N, torch.full((features,), 0.05), 3) @ planted_FD
    learned = learn(TokenBiasTopK(D, 64, 3, seed=0, lr=4e-3, vocabulary=V + 1), x_ND, tokens_N)
    plain = learn(TopK(D, 64, 3, seed=0, lr=4e-3), x_ND, tokens_N)
    assert recovered(planted_FD, learned.directions) > 0.9
    assert recovered(planted_FD, plain.directions) < 0.9
    assert fvu(learned, x_ND, tokens_N) < 0.5 * fvu(plain, x_ND, tokens_N)
    found_VD = learned.bias_at(torch.arange(V)).detach()
    found_VD, right_VD = (t - t.mean(0) for t in (found_VD, means_VD))
    assert (found_VD - right_VD).square().sum() < 0.02 * right_VD.square().sum()


def test_the_running_token_mean_is_exact_and_shrunk():
    """Rays that never fire: B is sum(x) / (n + prior) of each token, whatever the batches."""
    dictionary = TokenBiasTopK(2, 3, 1, vocabulary=4, prior=1.0)
    with torch.no_grad():
        dictionary.b_enc_L.fill_(-100)
    for x_ND, tokens in (([[1.0, 2.0], [3.0, 0.0]], [2, 0]), ([[5.0, 4.0], [0.0, 3.0]], [2, 2])):
        passed = dictionary.training_pass(torch.tensor(x_ND), torch.tensor(tokens))
        dictionary.after_step(passed)
    torch.testing.assert_close(dictionary.B_VD, torch.tensor([[1.5, 0], [0, 0], [6 / 4, 9 / 4], [0, 0]]))
    assert passed.l0 == 0
    x_ND = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert dictionary(x_ND, torch.tensor([2, 3])).tolist() == [[1.5, 2.25], [0.0, 0.0]]


def test_a_token_seen_more_than_memory_forgets():
    dictionary = TokenBiasTopK(1, 1, 1, vocabulary=1, prior=0.0)
    dictionary.memory = 10
    with torch.no_grad():
        dictionary.b_enc_L.fill_(-100)

    def see(x_ND):
        dictionary.after_step(dictionary.training_pass(x_ND, torch.zeros(len(x_ND), dtype=torch.int64)))

    for _ in range(4):
        see(torch.ones(5, 1))
    for done in range(1, 4):  # each batch of 5 is worth half of the memory of 10
        see(torch.zeros(5, 1))
        assert dictionary.B_VD.item() == pytest.approx(0.5**done)
    see(torch.full((100, 1), 7.0))
    assert dictionary.B_VD.item() == pytest.approx(7)  # never past the batch's own mean


def test_bad_tokens():
    dictionary, x_ND = TokenBiasTopK(16, 40, 4, vocabulary=5), sample()
    with pytest.raises(ValueError, match="tokens 0 to 5 are not all below vocabulary=5"):
        dictionary.encode(x_ND[:6], torch.arange(6))
    with pytest.raises(ValueError, match="200 vectors for 3 tokens"):
        dictionary.encode(x_ND, torch.arange(3))
    with pytest.raises(ValueError, match="vocabulary=0"):
        TokenBiasTopK(16, 40, 4, vocabulary=0)
    with pytest.raises(ValueError, match="prior=-1"):
        TokenBiasTopK(16, 40, 4, vocabulary=5, prior=-1)


def test_roles_follow_each_kind_s_own_sign():
    extra = {"token_bias_topk": {"vocabulary": 5}, "bottleneck_topk": {"rank": 2}}
    learned = {kind: cls for kind, cls in KINDS.items() if issubclass(cls, Learned)}
    roles = {kind: role_of(cls(8, 16, 2, **extra.get(kind, {}))) for kind, cls in learned.items()}
    assert {kind for kind, role in roles.items() if role == "directions"} == {"abstopk", "matryoshka_abstopk"}
    assert {kind for kind, role in roles.items() if role == "told"} == {"token_bias_topk"}
    assert {role for kind, role in roles.items() if "abstopk" not in kind and kind != "token_bias_topk"} == {"rays"}
