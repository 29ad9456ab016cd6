"""GPT-2's pieces in bfloat16 against PyTorch's and transformers' own in float32.
R rows, C context, H heads, d head width.
"""

import pytest
import torch
from torch.nn import functional as F
from transformers.activations import NewGELUActivation

from helpers import randn
from rayscope.model.bfloat16 import attention, causal, gelu


@pytest.mark.parametrize("context", [1, 63, 64, 65, 300])  # less than a block, one, one and a part, blocks of 128
def test_causal_attention_is_pytorch_s(context):
    q, k, v = (randn(2, 3, context, 16, seed=i) for i in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    torch.testing.assert_close(causal(q, k, v), expected)  # float32: the formula itself
    rounded = causal(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    fused = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), is_causal=True, scale=1.0)
    assert (rounded - expected).norm() < 5 * (fused.float() - expected).norm() + 1e-3 * expected.norm()


def test_attention_of_a_block_under_autocast(model):
    block = model.network.transformer.h[0]
    x_RCD = randn(3, 70, model.d_model)
    with torch.no_grad():
        expected = block.attn(x_RCD)[0]
        assert attention(block.attn, x_RCD).equal(expected)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = attention(block.attn, x_RCD)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - expected).norm() < 0.02 * expected.norm()


def test_gelu_is_the_tanh_form():
    x = randn(1000) * 3
    assert gelu(NewGELUActivation(), x).equal(NewGELUActivation()(x))
    found, expected = gelu(NewGELUActivation(), x.bfloat16()), NewGELUActivation()(x.bfloat16().float())
    assert (found.float() - expected).abs().max() < 0.01
    assert gelu(torch.nn.ReLU(), x.bfloat16()).equal(x.bfloat16().relu())  # another model's own activation stays
