"""Data for a benchmark, made on the spot: a world of planted rays, random rows of text, a GPT-2 with random weights.

N vectors, F features (rays), D width, R rows, C context.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rayscope.text import Rows

WORLD = 7919  # added to the seed: a dictionary seeded alike would begin with the very rays


def planted_rays(vectors: int, width: int, l0: float = 24.0, seed: int = 0) -> Tensor:
    """x_ND = mean + sum of the rays that fire + noise, like a residual stream in what a dictionary feels of it.

    6 rays a dimension; the one of rank r fires with probability ~ 1 / r, at most half of the time, `l0` of them a
    vector; strengths are 1 + |normal|; mean .3 and noise .02 a dimension.
    """
    generator = torch.Generator().manual_seed(seed + WORLD)
    features = 6 * width
    rays_FD = F.normalize(torch.randn(features, width, generator=generator))
    rate_F = 1 / torch.arange(1, features + 1)
    rate_F = (rate_F * (l0 / rate_F.sum())).clamp(max=0.5)
    x_ND = torch.empty(vectors, width)
    mean_D = 0.3 * torch.randn(width, generator=generator)
    for x_CD in x_ND.split(2048):
        fires_CF = torch.rand(len(x_CD), features, generator=generator) < rate_F
        strength_CF = 1 + torch.randn(len(x_CD), features, generator=generator).abs()
        noise_CD = 0.02 * torch.randn(len(x_CD), width, generator=generator)
        x_CD.copy_((fires_CF * strength_CF) @ rays_FD + mean_D + noise_CD)
    return x_ND


def random_rows(rows: int, context: int, vocabulary: int, seed: int) -> Rows:
    tokens_RC = np.random.default_rng(seed).integers(0, vocabulary, (rows, context), dtype=np.int64)
    documents_RC = np.repeat(np.arange(rows, dtype=np.int32)[:, None], context, axis=1)
    return Rows(tokens_RC, documents_RC, np.bincount(tokens_RC.ravel(), minlength=vocabulary))


def save_random_gpt2(folder: Path, shape: dict[str, Any], seed: int = 0) -> int:
    """A Hugging Face folder of that shape (GPT2Config's keys; what is left out is GPT-2 small's);
    its vocabulary's size.

    Random weights cost what the real ones cost. The tokenizer is the one that ships, which nothing here uses.
    """
    import transformers
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(files("rayscope") / "assets/tiny"))
    config = GPT2Config(**{"vocab_size": 50257, **shape})
    with torch.random.fork_rng():
        torch.manual_seed(seed + WORLD)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return config.vocab_size
