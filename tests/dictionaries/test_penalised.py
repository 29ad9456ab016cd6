"""JumpReLU, Gated and L1: their gradients by dense autograd, the L0 they land on, recovery. N vectors, L latents."""

import copy
import math

import pytest
import torch
from torch.autograd import Function
from torch.nn import functional as F

from helpers import fit, planted_world, randn, sample
from rayscope.dictionaries import L1, Gated, JumpReLU, load

pytestmark = pytest.mark.usefixtures("one_thread")
CASES = {
    "jumprelu": (JumpReLU, {}),
    "jumprelu step": (JumpReLU, {"sparsity": "step"}),
    "jumprelu tanh": (JumpReLU, {"sparsity": "tanh"}),
    "gated": (Gated, {}),
    "l1": (L1, {}),
    "l1 annealed": (L1, {"p_end": 0.3}),
}


class Jump(Function):
    """z = pre (pre > theta), by the pseudo-derivative of 2407.14435, equation 11."""

    @staticmethod
    def forward(ctx, pre, theta, h):
        ctx.save_for_backward(pre, theta)
        ctx.h = h
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx, grad):
        pre, theta = ctx.saved_tensors
        near = ((pre - theta) / ctx.h).abs() < 0.5
        return grad * (pre > theta), -(theta / ctx.h * near * grad).sum(0), None


class Step(Function):
    """Heaviside(pre - theta), by the pseudo-derivative of equation 12."""

    @staticmethod
    def forward(ctx, pre, theta, h):
        ctx.save_for_backward(pre, theta)
        ctx.h = h
        return (pre > theta).to(pre)

    @staticmethod
    def backward(ctx, grad):
        pre, theta = ctx.saved_tensors
        near = ((pre - theta) / ctx.h).abs() < 0.5
        return None, -(near * grad / ctx.h).sum(0), None


def dense_losses(d, x_ND):
    """The same losses by dense autograd, AuxK with every dead latent."""
    x_ND = x_ND * d.units.inner.scale
    dot_NL = (x_ND - d.b_dec_D) @ d.W_enc_LD.T
    pre_NL = dot_NL + d.b_enc_L
    whole = (x_ND - x_ND.mean(0)).square().sum()
    sigma = (whole / len(x_ND)).sqrt()
    losses, z_NL, relu_NL = {}, pre_NL.relu(), pre_NL.relu()
    if d.kind == "jumprelu":
        theta_L = d.log_theta_L.exp()
        z_NL = Jump.apply(pre_NL, theta_L, d.bandwidth)
        l0 = Step.apply(pre_NL.detach(), theta_L, d.bandwidth).sum(1).mean()
        tanh = (d.steepness * z_NL).tanh().sum(1).mean()
        penalty = {"quadratic": (l0 / d.k - 1) ** 2, "step": l0, "tanh": tanh}[d.sparsity]
    elif d.kind == "gated":
        z_NL = (pre_NL > 0) * (d.r_mag_L.exp() * dot_NL + d.b_mag_L).relu()
        missed_ND = x_ND - relu_NL @ d.W_dec_LD.detach() - d.b_dec_D.detach()
        losses["gate"] = missed_ND.square().sum() / whole
        penalty = relu_NL.sum(1).mean() / sigma
    else:
        size_NL = z_NL / sigma
        p = 1 - (1 - d.p_end) * 0.25
        power_NL = (size_NL + 0.01) ** p - 0.01**p if d.p_end < 1 else size_NL
        penalty = power_NL.sum(1).mean() * (size_NL.sum() / power_NL.sum()).detach()
    losses["sparsity"] = penalty * d.pressure
    e_ND = x_ND - z_NL @ d.W_dec_LD - d.b_dec_D
    losses["reconstruction"] = e_ND.square().sum() / whole
    e_ND, dead_A = e_ND.detach(), d.firing.dead_L.nonzero()[:, 0]
    aux_NA = (e_ND @ d.W_enc_LD.T)[:, dead_A].relu()
    losses["auxk"] = (e_ND - aux_NA @ d.W_dec_LD[dead_A]).square().sum() / (e_ND - e_ND.mean(0)).square().sum() / 32
    return losses


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_dense_autograd(case):
    cls, arguments = CASES[case]
    dictionary, x_ND = cls(16, 40, 4, seed=3, **arguments).double(), sample(seed=99).double()
    dictionary.prepare(sample().double(), dead_window=600, run_tokens=4000)
    dictionary.seen.fill_(1000)  # a quarter of the run
    dictionary.firing.silent_L[[0, 5, 7, 11, 30]] = 10**9
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if parameter.ndim == 1 and name != "b_dec_D":
                parameter += 0.2 * randn(40, seed=len(name)).double()
    parameters = list(dictionary.parameters())
    expected = dense_losses(dictionary, x_ND)
    found = dictionary.losses(x_ND)
    assert set(found) == set(expected)
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name])
        assert loss > 0
        right = torch.autograd.grad(expected[name], parameters, retain_graph=True, allow_unused=True)
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for grad, dense in zip(grads, right, strict=True):
            dense = torch.zeros(1, dtype=torch.float64) if dense is None else dense
            grad = torch.zeros_like(dense) if grad is None else grad.to_dense()
            torch.testing.assert_close(grad, dense.expand_as(grad))
    moved = torch.autograd.grad(found["sparsity"], parameters, allow_unused=True)
    assert any(grad is not None and grad.abs().sum() > 0 for grad in moved)


def test_the_quadratic_penalty_moves_thresholds_towards_k():
    """Above k each threshold with a pre near it is raised, below k lowered; nothing else is moved."""
    for k, sign in ((1, -1), (20, 1)):
        dictionary = JumpReLU(16, 40, 4, seed=3)
        dictionary.prepare(sample(), dead_window=600, run_tokens=4000)
        dictionary.seen.fill_(4000)
        dictionary.k = k
        loss = dictionary.losses(sample(seed=99))["sparsity"]
        loss.backward()
        grad_L = dictionary.log_theta_L.grad
        assert (sign * grad_L >= 0).all()
        assert grad_L.abs().sum() > 0
        assert dictionary.W_enc_LD.grad is None


@pytest.mark.parametrize("cls", [JumpReLU, Gated, L1])
def test_starts_with_k_codes_a_vector(cls):
    dictionary = cls(16, 40, 4, seed=3)
    dictionary.prepare(sample(), dead_window=600)
    assert len(dictionary.encode_sparse(sample()).values_M) == pytest.approx(200 * 4, abs=1)


def test_the_controller_by_hand():
    dictionary = L1(16, 40, 4, seed=3, lr=1e-2)
    dictionary.prepare(sample(), dead_window=600)
    expected = mean = 0.0
    for step in range(3):
        assert dictionary.pressure.item() == pytest.approx(0.1 * math.exp(expected), rel=1e-6)
        passed = dictionary.training_pass(sample(seed=step))
        dictionary.after_step(passed)
        before, mean = mean, mean + 0.1 * (math.log(passed.l0.item() / 4) - mean)
        expected += mean - before + 10 * 1e-2 * mean
    assert dictionary.pressure.item() == pytest.approx(0.1 * math.exp(expected), rel=1e-6)
    assert expected != 0


def test_a_given_coefficient_is_risen_to_and_then_stays():
    dictionary = L1(16, 40, 4, coefficient=0.5)
    dictionary.prepare(sample(), dead_window=600, run_tokens=20_000)
    found = []
    for step in range(7):
        found.append(dictionary.pressure.item())
        dictionary.after_step(dictionary.training_pass(sample(seed=step)))
    assert found == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_lands_on_k_and_recovers_a_planted_world(case):
    cls, arguments = CASES[case]
    D, steps, k = 32, 600, 3
    directions_FD, x_ND = planted_world(D, 64, active=2, N=100_000, seed=0)
    dictionary = cls(D, 128, k, seed=0, lr=3e-3, **arguments)
    dictionary.prepare(x_ND[:4096], dead_window=steps * 51, run_tokens=steps * 512)
    start = (directions_FD @ dictionary.directions.detach().T).max(1).values.mean()
    batches = (x_ND[torch.arange(512) + 512 * (step % 195)] for step in range(steps))
    fit(dictionary, batches, lambda step: min(1, (step + 1) / 30, (steps - step) / (0.2 * steps)))
    _, held_out_ND = planted_world(D, 64, active=2, N=10_000, seed=1)
    l0 = len(dictionary.encode_sparse(held_out_ND).values_M) / len(held_out_ND)
    assert l0 == pytest.approx(k, rel=0.15)
    assert start < 0.6
    assert (directions_FD @ dictionary.directions.detach().T).max(1).values.mean() > 0.85
    spread = (held_out_ND - held_out_ND.mean(0)).square().sum()
    assert (held_out_ND - dictionary(held_out_ND)).square().sum() / spread < 0.13


@pytest.mark.parametrize("case", CASES)
def test_resumes_bitwise(case):
    cls, arguments = CASES[case]
    whole = cls(16, 40, 4, seed=3, lr=1e-2, **arguments)
    whole.prepare(sample(), dead_window=600, run_tokens=4000)
    fit(whole, (sample(seed=step) for step in range(6)))
    resumed = cls(16, 40, 4, seed=3, lr=1e-2, **arguments)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for dictionary in (whole, resumed):
        fit(dictionary, (sample(seed=50 + step) for step in range(6)))
    assert all(value.equal(resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert F.cosine_similarity(whole.W_enc_LD, cls(16, 40, 4, seed=3).W_enc_LD).min() < 0.999  # it did move


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (L1, {"coefficient": -1.0}, "coefficient=-1"),
        (L1, {"p_end": 0.0}, "p_end=0"),
        (JumpReLU, {"sparsity": "cubic"}, "sparsity='cubic'; it is one of quadratic, step, tanh"),
        (JumpReLU, {"bandwidth": 0.0}, "bandwidth=0"),
        (JumpReLU, {"steepness": -1.0}, "steepness=-1"),
    ],
)
def test_bad_arguments(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(16, 40, 4, **arguments)


@pytest.mark.parametrize("kind", [JumpReLU, Gated, L1])
def test_a_saved_dictionary_learns_in_the_units_that_it_had(kind, tmp_path):
    """A file has the input scale folded in; unfolded, losses are as before (JumpReLU's bandwidth is scaled)."""
    x_ND = 50 * torch.randn(512, 8, generator=torch.Generator().manual_seed(3)) + 7
    before = kind(8, 32, 4, coefficient=1.0)
    before.prepare(x_ND, 10**6)
    before.seen.copy_(before.run)  # past the warm-up, without which the penalty is 0
    after = load(before.save(tmp_path / "saved"))
    after.unfold()
    penalties = [one.losses(1.5 * x_ND)["sparsity"].item() for one in (before, after)]  # where L0 is not k
    assert penalties[1] == pytest.approx(penalties[0], rel=1e-4)
    assert penalties[0] > 0
    assert after.units.inner.scale.item() == pytest.approx(before.units.inner.scale.item())
    for name, tensor in before.weights().items():
        torch.testing.assert_close(after.weights()[name], tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.encode(x_ND), before.encode(x_ND), rtol=1e-4, atol=1e-3)
    for one in (before, after):
        sum(one.losses(x_ND).values()).backward()
    theirs, mine = dict(after.named_parameters()), before.named_parameters()
    for name, parameter in mine:
        torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    again = load(after.save(tmp_path / "again"))  # and a file holds the same as the first
    for name, tensor in load(tmp_path / "saved").weights().items():
        torch.testing.assert_close(again.weights()[name], tensor, rtol=1e-4, atol=1e-4)


def test_a_later_stage_steers_from_where_the_last_one_stood(tmp_path):
    """Ten steps push the coefficient; saved, loaded and unfolded, the next losses are those of going on."""
    x_ND = torch.randn(512, 8, generator=torch.Generator().manual_seed(3))
    before = L1(8, 32, 1)
    before.prepare(x_ND, 10**6, run_tokens=5120)
    with torch.no_grad():
        before.b_enc_L += 1  # far too many codes
    for _ in range(10):
        before.after_step(before.training_pass(x_ND))
    assert before.pressure > 2 * L1(8, 32, 1).pressure
    after = load(before.save(tmp_path / "one"))
    after.unfold()
    assert after.pressure.item() == before.pressure.item()
    mine, theirs = before.losses(x_ND), after.losses(x_ND)
    for name, loss in mine.items():
        torch.testing.assert_close(theirs[name], loss, rtol=1e-4, atol=1e-6)
