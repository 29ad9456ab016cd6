"""Splicing against ablation done by hand, with PyTorch module hooks on the Hugging Face network."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rayscope.model import LanguageModel
from rayscope.model.sites import KINDS, Site, all_sites, resolve
from rayscope.model.splicing import CleanPass, token_loss
from rayscope.streams.positions import keep_first
from rayscope.text import PackedText

Edit = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def tokens_RC(packed: PackedText) -> Tensor:
    return torch.from_numpy(packed.test.tokens[:3].astype("int64"))


@pytest.fixture(scope="module")
def clean(model: LanguageModel, tokens_RC: Tensor) -> CleanPass:
    return CleanPass.run(model, tokens_RC, all_sites(model))


@torch.no_grad()
def by_hand(network, tokens_RC: Tensor, site: Site, edit: Edit) -> Tensor:
    """Logits of the network's own forward with the site's activation x made edit(x)."""
    block, before = network.transformer.h[site.layer], []

    def first(new: Edit):
        return lambda module, arguments, out: (new(out[0]), *out[1:]) if isinstance(out, tuple) else new(out)

    def mid(attn_out: Tensor) -> Tensor:  # what attention must give for the residual stream after it to be edit(x)
        return edit(before[0] + attn_out) - before[0]

    handles = {
        "hook_resid_pre": lambda: block.register_forward_pre_hook(
            lambda m, arguments: (edit(arguments[0]), *arguments[1:])
        ),
        "hook_attn_out": lambda: block.attn.register_forward_hook(first(edit)),
        "hook_resid_mid": lambda: block.attn.register_forward_hook(first(mid)),
        "mlp.hook_post": lambda: block.mlp.act.register_forward_hook(first(edit)),
        "hook_mlp_out": lambda: block.mlp.register_forward_hook(first(edit)),
        "hook_resid_post": lambda: block.register_forward_hook(first(edit)),
    }
    capture = block.register_forward_pre_hook(lambda m, arguments: before.append(arguments[0]))
    handle = handles[site.kind]()
    try:
        return network(tokens_RC).logits
    finally:
        handle.remove()
        capture.remove()


def direct(logits_RCV: Tensor, tokens_RC: Tensor) -> Tensor:
    """-log softmax(logits)[next token], written out in float64."""
    p_RCV = logits_RCV.double().exp() / logits_RCV.double().exp().sum(-1, keepdim=True)
    return -p_RCV[:, :-1].gather(-1, tokens_RC[:, 1:, None])[..., 0].log()


def test_the_clean_pass_is_the_networks_own(model: LanguageModel, tokens_RC: Tensor, clean: CleanPass):
    with torch.no_grad():
        logits = model.network(tokens_RC).logits
        mean = model.network(tokens_RC, labels=tokens_RC).loss
    assert clean.loss_RC.shape == (3, 31)
    torch.testing.assert_close(clean.loss_RC.double(), direct(logits, tokens_RC), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clean.loss_RC.mean(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(token_loss(clean.logp_RCV, tokens_RC), clean.loss_RC)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_costs_exactly_nothing(model: LanguageModel, clean: CleanPass, kind: str, layer: int):
    (site,) = resolve(f"blocks.{layer}.{kind}", model)
    x_RCD = clean.activations[site.key]
    for x_hat_RCD in (x_RCD, x_RCD.clone(), keep_first(x_RCD, x_RCD.clone())):
        loss_RC, divergence_RC = clean.spliced(site, x_hat_RCD)
        assert torch.equal(loss_RC, clean.loss_RC)
        assert (divergence_RC == 0).all()


EDITS = {
    "zero": torch.zeros_like,
    "zero but at position 0": lambda x: torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1),
    "another vector": lambda x: 0.5 * x.roll(1, -1) + 0.1,
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_splice_is_the_ablation_done_by_hand(
    model: LanguageModel, tokens_RC: Tensor, clean: CleanPass, kind: str, edit: Edit
):
    """Loss, and KL(clean || spliced) from the two softmaxes."""
    (site,) = resolve(f"blocks.1.{kind}", model)
    logits = by_hand(model.network, tokens_RC, site, edit)
    loss_RC, divergence_RC = clean.spliced(site, edit(clean.activations[site.key]))
    expected = direct(logits, tokens_RC)
    torch.testing.assert_close(loss_RC.double(), expected, rtol=1e-4, atol=1e-4)
    assert (expected - clean.loss_RC).abs().max() > 0.01  # the edit does something

    with torch.no_grad():
        p, q = (t[:, :-1].double().softmax(-1) for t in (model.network(tokens_RC).logits, logits))
    kl = (p * (p.log() - q.log())).sum(-1)
    torch.testing.assert_close(divergence_RC.double(), kl, rtol=1e-3, atol=1e-4)
    backwards = (q * (q.log() - p.log())).sum(-1)
    assert (kl - backwards).abs().max() > 10 * (kl - divergence_RC).abs().max()  # and it tells the two KLs apart


def test_a_splice_of_position_0_reaches_later_positions_and_excluding_it_does_not(
    model: LanguageModel, clean: CleanPass
):
    (site,) = resolve("blocks.0.hook_resid_post", model)
    x_RCD = clean.activations[site.key]
    x_hat_RCD = x_RCD.clone()
    x_hat_RCD[:, 0] = 0
    kept = keep_first(x_RCD, x_hat_RCD)
    assert torch.equal(kept, x_RCD)
    assert torch.equal(clean.spliced(site, kept)[0], clean.loss_RC)
    moved_RC = clean.spliced(site, x_hat_RCD)[0] != clean.loss_RC
    assert moved_RC[:, 0].all()
    assert moved_RC[:, 10:].any()


def test_one_clean_pass_serves_sites_of_several_layers(model: LanguageModel, tokens_RC: Tensor, clean: CleanPass):
    """Whatever sites a pass is made for, a splice is the same to the bit."""
    (site,) = resolve("blocks.1.hook_mlp_out", model)
    alone = CleanPass.run(model, tokens_RC, [site])
    assert set(alone.residual) == {1}
    nothing = torch.zeros_like(alone.activations[site.key])
    assert torch.equal(alone.spliced(site, nothing)[0], clean.spliced(site, nothing)[0])
