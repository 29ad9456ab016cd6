"""Every kind of dictionary: one interface, gradients of dense autograd, files, and recovery of a planted world.

N vectors, D site width, L latents.
"""

import copy
import json
import subprocess
import sys

import pytest
import torch
from sklearn.linear_model import orthogonal_mp
from torch.nn import functional as F

from helpers import fit, planted_world, randn, sample, tokens_of
from rayscope.baselines import pca
from rayscope.dictionaries import (
    L1,
    AbsTopK,
    BatchTopK,
    BottleneckTopK,
    Dictionary,
    Gated,
    JumpReLU,
    Linear,
    MatryoshkaAbsTopK,
    MatryoshkaBatchTopK,
    MatryoshkaTopK,
    TiedTopK,
    TokenBiasTopK,
    TopK,
    find,
    fingerprint,
    load,
)
from rayscope.dictionaries.coders.omp import omp
from rayscope.streams.statistics import Moments

pytestmark = pytest.mark.usefixtures("one_thread")
BY_K = [TopK, AbsTopK, BatchTopK, MatryoshkaTopK, MatryoshkaAbsTopK, MatryoshkaBatchTopK, TiedTopK, BottleneckTopK]
BY_K += [TokenBiasTopK]
LEARNED = [*BY_K, JumpReLU, Gated, L1]
OWN = {BottleneckTopK: {"rank": 3}, TokenBiasTopK: {"vocabulary": 11}}  # arguments that only these take


def trained(cls, steps=20, D=16, L=40, k=4, **arguments):
    dictionary = cls(D, L, k, seed=3, **{"lr": 1e-2, **OWN.get(cls, {}), **arguments})
    dictionary.prepare(sample(D=D), dead_window=600, tokens_N=tokens_of(sample(D=D)))
    fit(dictionary, (sample(D=D, seed=step + 1) for step in range(steps)))
    return dictionary


def linear(coder):
    directions_LD = torch.linalg.qr(randn(16, 16, seed=5)).Q if coder != "omp" else 3 * randn(40, 16, seed=5)
    return Linear(16, len(directions_LD), 4, coder, directions_LD, torch.full((16,), 20.0))


KINDS = {cls.kind: lambda cls=cls: trained(cls) for cls in LEARNED} | {
    f"linear {coder}": lambda coder=coder: linear(coder) for coder in ("prefix", "topk", "omp")
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_interface(kind, tmp_path):
    x_ND = sample(seed=99)
    dictionary, tokens_N = KINDS[kind](), tokens_of(x_ND)
    z_NL, codes = dictionary.encode(x_ND, tokens_N), dictionary.encode_sparse(x_ND, tokens_N)
    assert codes.dense().equal(z_NL)
    assert (codes.values_M != 0).all()
    sparse_NL, dense_Nr = z_NL.split([dictionary.latents - dictionary.dense, dictionary.dense], 1)
    assert (sparse_NL < 0).any() == dictionary.signed  # rays are never negative, directions are
    assert (dense_Nr != 0).all()
    x_hat_ND, zero_NL = dictionary(x_ND, tokens_N), torch.zeros(200, dictionary.latents)
    linear_ND = z_NL @ dictionary.directions + dictionary.decode(zero_NL, tokens_N)
    torch.testing.assert_close(dictionary.decode(z_NL, tokens_N), linear_ND)
    torch.testing.assert_close(dictionary.decode_sparse(codes, tokens_N), linear_ND)
    torch.testing.assert_close(x_hat_ND, linear_ND)
    torch.testing.assert_close(dictionary.directions.norm(dim=1), torch.ones(dictionary.latents))
    if not dictionary.adaptive:
        assert ((sparse_NL != 0).sum(1) <= 4).all()
    assert (x_ND - x_hat_ND).square().sum() < (x_ND - x_ND.mean(0)).square().sum()

    dictionary.save(tmp_path / "d", provenance={"site": "blocks.0.hook_resid_post"})
    loaded = load(tmp_path / "d")
    dictionary.save(tmp_path / ".replaced" / "d")
    assert list(find(tmp_path)) == ["d"]
    assert loaded.arguments() == dictionary.arguments()
    assert loaded.provenance["site"] == "blocks.0.hook_resid_post"
    torch.testing.assert_close(loaded.encode(x_ND, tokens_N), z_NL, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded(x_ND, tokens_N), x_hat_ND, rtol=1e-4, atol=1e-3)
    assert dictionary.with_k(4).encode(x_ND, tokens_N).equal(z_NL)
    assert len(dictionary.encode_sparse(x_ND[:0], tokens_N[:0])) == 0
    with pytest.raises(ValueError, match="width 16"):
        dictionary.encode(x_ND[:, :5], tokens_N)


@pytest.mark.parametrize("kind", KINDS)
def test_what_reads_no_token_needs_none_and_what_reads_it_says_so(kind):
    x_ND = sample(seed=99)
    dictionary, tokens_N = KINDS[kind](), tokens_of(x_ND)
    z_NL = dictionary.encode(x_ND, tokens_N)
    assert dictionary.side or dictionary.encode(x_ND).equal(z_NL)
    calls = {"encode": x_ND, "forward": x_ND, "decode": z_NL, "decode_sparse": dictionary.encode_sparse(x_ND, tokens_N)}
    calls |= {"losses": x_ND, "training_pass": x_ND} if hasattr(dictionary, "losses") else {}
    for name, argument in calls.items():
        if dictionary.side:
            with pytest.raises(ValueError, match="reads the current token: give tokens_N, one id per vector"):
                getattr(dictionary, name)(argument)
        else:
            getattr(dictionary, name)(argument)


def test_a_class_that_lacks_a_member_says_which():
    class NoBias(TopK):
        bias = Dictionary.bias

    with pytest.raises(TypeError, match=r"abstract method '?bias'?"):
        NoBias(16, 40, 4)


def test_a_changed_weights_file_is_refused(tmp_path):
    folder = linear("topk").save(tmp_path / "d")
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="not the file"):
        load(folder)


@pytest.mark.parametrize("cls", LEARNED)
def test_saving_folds_the_scale_and_leaves_training_state_out(cls, tmp_path):
    dictionary, x_ND = trained(cls, decoder="soft_frozen"), sample(seed=99)
    before = copy.deepcopy(dictionary.state_dict())
    loaded = load(dictionary.save(tmp_path / "d"))
    assert dictionary.units.inner.scale != 1
    assert loaded.units.inner.scale == 1
    assert loaded.provenance["input_scale"] == pytest.approx(dictionary.units.inner.scale.item())
    assert loaded.directions.equal(dictionary.directions)
    torch.testing.assert_close(loaded.bias, dictionary.bias)
    tokens_N = tokens_of(x_ND)
    z_NL = dictionary.encode(x_ND, tokens_N)
    torch.testing.assert_close(loaded.encode(x_ND, tokens_N), z_NL, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded(x_ND, tokens_N), dictionary(x_ND, tokens_N), rtol=1e-4, atol=1e-3)
    assert all(value.equal(before[name]) for name, value in dictionary.state_dict().items())  # saving changed nothing
    left_out = {"silent_L", "dead_window", "threshold_mean", "threshold_steps", "initial_LD", "seen_V"}
    assert set(dictionary.weights()) & left_out == set()
    assert {"silent_L", "dead_window"} <= set(dictionary.state_dict())
    again = load(loaded.save(tmp_path / "again"))
    assert again.provenance["input_scale"] == loaded.provenance["input_scale"]
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    assert config["arguments"]["lr"] == 1e-2


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("cls", LEARNED)
def test_losses_change_nothing_and_the_step_does(cls, whiten):
    dictionary, x_ND = trained(cls, whiten=whiten), sample(seed=99)
    dictionary.firing.silent_L[:5] = 10**9  # so AuxK has something to do
    before, held = copy.deepcopy(dictionary.state_dict()), copy.deepcopy(vars(dictionary))
    passed = dictionary.training_pass(x_ND, tokens_of(x_ND))
    dictionary.losses(x_ND, tokens_of(x_ND))
    assert passed.losses["auxk"] > 0
    assert all(value.equal(before[name]) for name, value in dictionary.state_dict().items())
    assert vars(dictionary).keys() == held.keys()
    assert all(vars(dictionary)[name] == value for name, value in held.items() if not name.startswith("_"))
    dictionary.after_step(passed)
    changed = {name for name, value in dictionary.state_dict().items() if not value.equal(before[name])}
    moved = {"batchtopk": "threshold", "token_bias_topk": "B_VD", "l1": "excess", "gated": "excess"}.get(cls.kind)
    assert changed >= {"silent_L", "fired_L", "counted", *([moved] if moved else [])}


@pytest.mark.parametrize("cls", LEARNED)
def test_training_resumes_bitwise_from_the_state_dict(cls):
    torch.manual_seed(0)
    whole = trained(cls, steps=10)
    resumed = cls(16, 40, 4, seed=3, lr=1e-2, **OWN.get(cls, {}))
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for dictionary in (whole, resumed):
        fit(dictionary, (sample(seed=100 + step) for step in range(5)))
    assert all(value.equal(resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def dense_losses(dictionary, x_ND, parameters):
    """The same losses by dense autograd."""
    W_enc, b_enc, W_dec, b_dec = parameters
    tokens_N, x_ND = tokens_of(x_ND), x_ND * dictionary.units.inner.scale
    spread = (x_ND - x_ND.mean(0)).square().sum()
    if dictionary.side:
        x_ND = x_ND - dictionary.B_VD[tokens_N].clone()
    pre_NL = (x_ND - b_dec) @ W_enc.T + b_enc
    size_NL = pre_NL.abs() if dictionary.signed else pre_NL
    act_NL = pre_NL if dictionary.signed else pre_NL.relu()
    k, dead_A = dictionary.k, dictionary.firing.dead_L.nonzero()[:, 0]
    if dictionary.dense:
        rays = dictionary.latents - dictionary.dense
        act_NL = torch.cat([act_NL[:, :rays], pre_NL[:, rays:]], 1)
        mask_NL = torch.ones_like(size_NL)
        mask_NL[:, :rays] = torch.zeros_like(size_NL[:, :rays]).scatter(1, size_NL[:, :rays].topk(k).indices, 1)
    elif dictionary.adaptive:
        mask_NL = torch.zeros(size_NL.numel(), dtype=size_NL.dtype)
        mask_NL[size_NL.flatten().topk(len(x_ND) * k).indices] = 1
        mask_NL = mask_NL.view_as(size_NL)
    else:
        mask_NL = torch.zeros_like(size_NL).scatter(1, size_NL.topk(k).indices, 1)
    prefixes = [x_ND - (act_NL * mask_NL)[:, :g] @ W_dec[:g] - b_dec for g in getattr(dictionary, "groups", [40])]
    reconstruction = sum(e_ND.square().sum() for e_ND in prefixes) / len(prefixes) / spread
    e_ND = prefixes[-1].detach()
    dots_NL = e_ND @ W_enc.T  # dead latents code what is left
    act_NL, size_NL = (dots_NL, dots_NL.abs()) if dictionary.signed else (dots_NL.relu(), dots_NL)
    chosen = size_NL[:, dead_A].topk(min(dictionary.auxk, len(dead_A))).indices
    dead_NL = torch.zeros_like(size_NL).scatter(1, dead_A[chosen], 1)
    missed_ND = e_ND - (act_NL * dead_NL) @ W_dec
    auxk = missed_ND.square().sum() / (e_ND - e_ND.mean(0)).square().sum() / 32
    return reconstruction + auxk, (dead_NL * act_NL).detach() != 0


@pytest.mark.parametrize("cls", BY_K)
@pytest.mark.parametrize("dead", [5, 20, 36])  # fewer than auxk = 8, more, and more than 4 auxk
def test_gradients_equal_dense_autograd(cls, dead):
    x_ND = sample(seed=99).double()
    dictionary = trained(cls, steps=2).double()
    dictionary.firing.silent_L.zero_()[torch.arange(dead)] = 10**9
    with torch.no_grad():
        dictionary.b_enc_L += 0.3 * randn(40).double()
    parameters = [dictionary.W_enc_LD, dictionary.b_enc_L, dictionary.W_dec_LD, dictionary.b_dec_D]
    expected, dead_NL = dense_losses(dictionary, x_ND, parameters)
    expected_grads = torch.autograd.grad(expected, parameters, retain_graph=True)
    found = dictionary.losses(x_ND, tokens_of(x_ND))
    assert found["auxk"] > 0
    torch.testing.assert_close(sum(found.values()), expected)
    for grad, right in zip(
        torch.autograd.grad(sum(found.values()), parameters, retain_graph=True), expected_grads, strict=True
    ):
        torch.testing.assert_close(grad, right)
    reached_L = dead_NL.any(0)  # every dead latent that was selected, and no other, is moved by auxk
    assert reached_L.any()
    for grad in torch.autograd.grad(found["auxk"], [dictionary.W_enc_LD, dictionary.W_dec_LD]):
        assert (grad.to_dense().reshape(40, -1) != 0).any(1).equal(reached_L)


@pytest.mark.slow
@pytest.mark.parametrize("cls", BY_K)
def test_losses_pass_gradcheck(cls):
    x_ND = sample(6, 4).double()
    dictionary, tokens_N = cls(4, 10, 2, seed=1, auxk=2, **OWN.get(cls, {})).double(), tokens_of(x_ND)
    dictionary.prepare(x_ND, dead_window=100, tokens_N=tokens_N)
    with torch.no_grad():
        dictionary.b_enc_L += 0.1 * randn(10).double()
    parameters = dict(dictionary.named_parameters())
    state = copy.deepcopy(dictionary.state_dict())

    def losses(*values):
        dictionary.load_state_dict(state)
        dictionary.firing.silent_L[[0, 4, 7]] = 200
        both = torch.func.functional_call(dictionary, dict(zip(parameters, values, strict=True)), (x_ND, tokens_N))
        return both["reconstruction"]

    dictionary.forward = dictionary.losses  # functional_call calls forward; auxk's residual is a constant by design
    assert torch.autograd.gradcheck(losses, [p.detach().clone().requires_grad_() for p in parameters.values()])


def test_hand_case():
    dictionary = TopK(2, 3, 1)
    with torch.no_grad():
        dictionary.W_dec_LD.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        dictionary.W_enc_LD.copy_(dictionary.W_dec_LD)
    x_ND = torch.tensor([[2.0, 1.0], [-3.0, 0.0]])
    assert dictionary.encode(x_ND).tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]]
    assert dictionary(x_ND).tolist() == [[2.0, 0.0], [-3.0, 0.0]]
    passed = dictionary.training_pass(x_ND)
    assert passed.losses["reconstruction"].item() == pytest.approx(1 / (2 * 2.5**2 + 2 * 0.5**2))
    assert passed.l0 == 1
    dictionary.after_step(passed)
    assert dictionary.firing.silent_L.tolist() == [0, 2, 0]


def test_losses_do_not_depend_on_the_scale_of_x():
    found = []
    for scale in (1.0, 1000.0):
        dictionary = TopK(16, 40, 4, seed=1)
        dictionary.prepare(sample() * scale, dead_window=100)
        dictionary.firing.silent_L[:10] = 1000
        found.append(dictionary.losses(sample() * scale))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_constant_batch_is_finite():
    dictionary = TopK(16, 40, 4)
    dictionary.prepare(sample(), dead_window=1)
    dictionary.firing.silent_L[:10] = 1000
    losses = dictionary.losses(torch.ones(3, 16))
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in dictionary.parameters())


def test_batchtopk_takes_exactly_its_budget():
    dictionary = BatchTopK(16, 64, 5, seed=1)
    dictionary.prepare(sample(), dead_window=10**6)
    for step in range(5):  # the first without a threshold to start from
        passed = dictionary.training_pass(sample(seed=step))
        assert passed.l0 == 5
        dictionary.after_step(passed)
    codes = dictionary.encode_sparse(sample(seed=50))
    assert codes.offsets.diff().unique().numel() > 1


def test_batchtopk_threshold_keeps_its_l0_on_fresh_data():
    dictionary = trained(BatchTopK, steps=150, D=16, L=64, k=5, lr=1e-3)
    l0 = [len(dictionary.encode_sparse(sample(2000, seed=900)).values_M) / 2000]
    x_ND = sample(4000, seed=901)
    dictionary.calibrate(x_ND)
    assert len(dictionary.encode_sparse(x_ND).values_M) == 4000 * 5
    l0.append(len(dictionary.encode_sparse(sample(4000, seed=902)).values_M) / 4000)
    assert l0 == pytest.approx([5, 5], rel=0.1)  # by the running mean, and calibrated


def test_frozen_decoder_stays():
    dictionary = trained(TopK, decoder="frozen")
    fresh = TopK(16, 40, 4, seed=3)
    assert dictionary.directions.equal(fresh.directions)
    assert not dictionary.W_enc_LD.allclose(fresh.W_enc_LD)
    assert dictionary.arguments()["decoder"] == "frozen"


def test_frozen_encoder_stays():
    dictionary = trained(TopK, encoder="frozen")
    fresh = TopK(16, 40, 4, seed=3)
    assert dictionary.W_enc_LD.equal(fresh.W_enc_LD)
    assert not dictionary.directions.allclose(fresh.directions)
    assert dictionary.b_enc_L.any()


@pytest.mark.parametrize("cls", [TopK, TiedTopK])
def test_soft_frozen_rows_stay_within_their_caps_at_the_nearest_point(cls):
    drawn_LD = cls(16, 40, 4, seed=3).directions.detach()
    cosine_L = (trained(cls, decoder="soft_frozen", lr=0.1).directions * drawn_LD).sum(1)
    assert cosine_L.min() > 0.8 - 1e-6
    assert (cosine_L < 0.8 + 1e-6).any()  # some would have gone further
    dictionary = TopK(2, 3, 1, decoder="soft_frozen")
    turned = {2.0: torch.acos(torch.tensor(0.8)), 0.3: 0.3, -1.0: -torch.acos(torch.tensor(0.8))}  # asked: found
    with torch.no_grad():
        for row_D, angle in zip(dictionary.W_dec_LD, turned, strict=True):
            row_D.copy_(3 * rotation(angle) @ row_D)
        dictionary.project_weights()
    found = torch.stack([rotation(a) @ row_D for row_D, a in zip(dictionary.initial_LD, turned.values(), strict=True)])
    torch.testing.assert_close(dictionary.W_dec_LD.data, found)


def rotation(angle):
    c, s = torch.tensor(float(angle)).cos(), torch.tensor(float(angle)).sin()
    return torch.tensor([[c, -s], [s, c]])


def test_gradients_are_projected_and_rows_stay_unit():
    dictionary = TopK(16, 40, 4)
    dictionary.prepare(sample(), dead_window=10**6)
    sum(dictionary.losses(sample()).values()).backward()
    dictionary.project_gradients()
    along_L = (dictionary.W_dec_LD.grad * dictionary.W_dec_LD).sum(1)
    assert along_L.abs().max() < 1e-6 * dictionary.W_dec_LD.grad.norm()
    torch.testing.assert_close(trained(TopK).directions.norm(dim=1), torch.ones(40))


def test_prepare_centres_and_scales():
    dictionary = TopK(16, 40, 4)
    dictionary.prepare(sample(), dead_window=77)
    scaled_ND = sample() * dictionary.units.inner.scale
    assert scaled_ND.square().sum(1).mean().item() == pytest.approx(16, rel=1e-5)
    torch.testing.assert_close(dictionary.b_dec_D.data, scaled_ND.mean(0))
    torch.testing.assert_close(dictionary.decode(torch.zeros(1, 40))[0], sample().mean(0))
    assert dictionary.firing.dead_window == 77


def test_its_seed_is_its_own():
    state = torch.random.get_rng_state()
    first, second, third = TopK(16, 40, 4, seed=1), TopK(16, 40, 4, seed=1), TopK(16, 40, 4, seed=2)
    assert torch.random.get_rng_state().equal(state)
    assert first.directions.equal(second.directions)
    assert not first.directions.equal(third.directions)
    assert first.W_enc_LD.equal(first.directions)


def test_default_learning_rate():
    assert TopK(16, 2**12, 4).lr == pytest.approx(4e-4)
    assert TopK(16, 40, 4).auxk == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 64}, "k=64 exceeds the 40 latents"),
        ({"decoder": "thawed"}, "decoder='thawed'"),
        ({"encoder": "thawed"}, "encoder='thawed'"),
        ({"lr": 0.0}, "lr=0"),
        ({"auxk": 41}, "auxk=41"),
        ({"k": 1.5}, "k=1.5 must be a whole number"),
        ({"latents": "40"}, "latents='40' must be a whole number"),
        ({"auxk": 2.5}, "auxk=2.5 must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"seed": 2**64}, f"seed={2**64} must fit in 64 bits"),
        ({"lr": "1e-3"}, "lr='1e-3' must be a number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TopK(**{"width": 16, "latents": 40, "k": 4, **arguments})


def test_bad_vectors():
    x_ND = sample()
    x_ND[3, 2], x_ND[7] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="2 of 200 activation vectors hold NaN or inf"):
        TopK(16, 40, 4).losses(x_ND)
    with pytest.raises(ValueError, match="2 of 200"):
        TopK(16, 40, 4).prepare(x_ND, 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coder": "best"}, "coder='best'"),
        ({"directions": torch.ones(5, 16)}, r"shape \(5, 16\)"),
        ({"directions": torch.zeros(40, 16)}, "40 of 40 directions are zero"),
        ({"bias": torch.ones(3)}, r"shape \(3,\)"),
    ],
)
def test_bad_linear(arguments, message):
    with pytest.raises(ValueError, match=message):
        Linear(**{"width": 16, "latents": 40, "k": 4, "coder": "omp", **arguments})


def test_omp_equals_scikit_learn(monkeypatch):
    monkeypatch.setattr("rayscope.dictionaries.coders.support.CHUNK", 50)
    x_ND, W_LD = randn(120, 20, dtype=torch.float64), F.normalize(randn(60, 20, seed=1, dtype=torch.float64))
    indices, values = omp(x_ND, W_LD, 6)
    found = torch.zeros(120, 60, dtype=torch.float64).scatter(1, indices, values)
    expected = orthogonal_mp(W_LD.T.numpy(), x_ND.T.numpy(), n_nonzero_coefs=6)
    torch.testing.assert_close(found, torch.from_numpy(expected.T.copy()))


def test_omp_stops_where_nothing_is_left():
    W_LD = F.normalize(randn(60, 20, seed=1))
    x_ND = torch.stack([2 * W_LD[3] - W_LD[9], torch.zeros(20), -4 * W_LD[5]])
    indices, values = omp(x_ND, W_LD, 30)  # more than the 20 dimensions
    z_NL = torch.zeros(3, 60).scatter_add(1, indices, values)
    assert z_NL.isfinite().all()
    torch.testing.assert_close(z_NL @ W_LD, x_ND, rtol=1e-4, atol=1e-4)
    assert z_NL[2].nonzero().tolist() == [[5]]


@pytest.mark.slow
def test_topk_recovers_a_planted_world_and_pca_does_not():
    D, features = 32, 64
    directions_FD, x_ND = planted_world(D, features, active=2, N=200_000, seed=0)  # L0 = d / 16
    dictionary = TopK(D, 128, k=3, seed=0, lr=3e-3)
    dictionary.prepare(x_ND[:4096], dead_window=20_000)
    steps = 800
    batches = (x_ND[torch.arange(512) + 512 * (step % 390)] for step in range(steps))
    fit(dictionary, batches, lambda step: min(1, step / 40, (steps - step) / (0.4 * steps)))
    moments = Moments()
    moments.update(x_ND)
    principal_LD = pca(moments, 2, "prefix").directions
    learned = (directions_FD @ dictionary.directions.detach().T).max(1).values.mean()
    assert learned > 0.9
    assert (directions_FD @ torch.cat([principal_LD, -principal_LD]).T).max(1).values.mean() < 0.7


@pytest.mark.slow
def test_importing_the_dictionaries_needs_torch_and_safetensors_alone():
    code = (
        "import sys, rayscope.dictionaries as d\n"
        "heavy = 'transformers transformer_lens datasets lightning hydra omegaconf wandb sklearn scipy pandas "
        "matplotlib rich jinja2 pyarrow'.split()\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "print(hasattr(d, 'TopK'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "True"]


def test_the_fingerprint_of_a_folder_changes_with_any_weight_and_name(tmp_path):
    def saved(name: str, scale: float) -> str:
        dictionary = TopK(8, 16, 2, seed=0)
        with torch.no_grad():
            next(dictionary.parameters()).mul_(scale)
        dictionary.save(tmp_path / name / "rays")
        return fingerprint(tmp_path / name)

    before = saved("a", 1.0)
    assert saved("b", 1.0) == before != saved("c", 1.5)
    (tmp_path / "a" / "rays").rename(tmp_path / "a" / "others")
    assert fingerprint(tmp_path / "a") != before
