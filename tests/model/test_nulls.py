"""Null models: what is random, what is kept, and that each draw is another."""

import pytest
import torch

from rayscope.model import LanguageModel
from rayscope.model.nulls import EMBEDDINGS, NULL_MODELS, permuted_weights, random_blocks, random_weights


@pytest.mark.parametrize("name", NULL_MODELS)
def test_each_draw_is_another_and_the_same_seed_the_same(name, model: LanguageModel):
    before, own = torch.random.get_rng_state(), model.fingerprint
    one, same, other = (NULL_MODELS[name](model, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other.fingerprint, own}) == 3
    assert LanguageModel(model.name, model.network, None).fingerprint == own  # read again: the model is as it was
    assert one.name == f"{model.name} ({name.replace('_', ' ')}, seed 1)"
    assert one.tokenizer is model.tokenizer
    shapes = [{n: t.shape for n, t in m.network.state_dict().items()} for m in (one, model)]
    assert shapes[0] == shapes[1]
    assert one.network.lm_head.weight.data_ptr() == one.network.transformer.wte.weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in one.network.parameters())
    tokens_RC = torch.randint(model.vocabulary, (2, model.context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = one.unembed(one.run_blocks(one.embed(tokens_RC)))
        torch.testing.assert_close(logits, one.network(tokens_RC).logits)


def test_random_weights_are_those_that_gpt2_starts_from(model: LanguageModel):
    """N(0, std), into the residual stream std / sqrt(2 layers), no biases."""
    config, block = model.network.config, random_weights(model, 1).network.transformer.h[1]
    std = config.initializer_range
    assert block.mlp.c_fc.weight.std() == pytest.approx(std, rel=0.05)
    assert block.mlp.c_proj.weight.std() == pytest.approx(std / (2 * config.n_layer) ** 0.5, rel=0.05)
    assert not block.mlp.c_fc.bias.any()


def test_random_blocks_keep_the_embeddings_bit_for_bit_and_nothing_else(model: LanguageModel):
    null, random = (dict(of(model, 1).network.named_parameters()) for of in (random_blocks, random_weights))
    own = dict(model.network.named_parameters())
    assert set(EMBEDDINGS) < set(own)
    for name, parameter in null.items():
        assert torch.equal(parameter, (own if name in EMBEDDINGS else random)[name]), name


def test_permuted_weights_keep_the_values_of_each_matrix(model: LanguageModel):
    null, own = (dict(m.network.named_parameters()) for m in (permuted_weights(model, 1), model))
    for name, parameter in own.items():
        parts = 3 if ".c_attn." in name else 1  # queries, keys and values
        for was, now in zip(parameter.chunk(parts, dim=-1), null[name].chunk(parts, dim=-1), strict=True):
            assert torch.equal(was.flatten().sort().values, now.flatten().sort().values), name
            assert torch.equal(was, now) == (len(was.unique()) == 1), name  # biases of 0 and gains of 1 cannot move
