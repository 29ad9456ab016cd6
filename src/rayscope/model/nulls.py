"""Null models: a model of the same shape and tokenizer in which less and less is what training put there."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rayscope.model.language_model import LanguageModel
from rayscope.seeding import generator_of

EMBEDDINGS = ("transformer.wte.weight", "transformer.wpe.weight")  # of tokens, which unembeds too, and of positions


def random_weights(model: LanguageModel, seed: int = 0) -> LanguageModel:
    """All weights are such as GPT-2 starts from, whose vectors of positions are as long as those of tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of("random weights", seed).initial_seed())
        network = type(model.network)(copy.deepcopy(model.network.config))
    return null(model, network, f"random weights, seed {seed}")


def random_blocks(model: LanguageModel, seed: int = 0) -> LanguageModel:
    """The embeddings of tokens and positions are the model's own, all other weights such as GPT-2 starts from."""
    null = random_weights(model, seed)
    own = dict(model.network.named_parameters())
    for name, parameter in null.network.named_parameters():
        if name in EMBEDDINGS:
            parameter.copy_(own[name])
    return replace(null, name=f"{model.name} (random blocks, seed {seed})")


def permuted_weights(model: LanguageModel, seed: int = 0) -> LanguageModel:
    """The entries of each matrix and each vector in an order drawn at random, so that its values and norm are kept.

    Those of queries, keys and values, which GPT-2 keeps in one matrix, are three matrices.
    """
    network = copy.deepcopy(model.network)
    for name, parameter in network.named_parameters():
        for number, matrix in enumerate(matrices(name, parameter)):
            generator = generator_of("permuted weights", seed, name, number)
            order = torch.randperm(matrix.numel(), generator=generator).to(matrix.device)
            matrix.copy_(matrix.flatten()[order].view_as(matrix))
    return null(model, network, f"permuted weights, seed {seed}")


NULL_MODELS: dict[str, Callable[[LanguageModel, int], LanguageModel]] = {
    "random_weights": random_weights,
    "random_blocks": random_blocks,
    "permuted_weights": permuted_weights,
}


def matrices(name: str, parameter: Tensor) -> Iterator[Tensor]:
    """Views of a parameter's matrices, or vectors."""
    yield from parameter.detach().chunk(3 if ".c_attn." in name else 1, dim=-1)


def null(model: LanguageModel, network: Any, what: str) -> LanguageModel:
    network.eval().requires_grad_(False).to(model.device)
    return LanguageModel(f"{model.name} ({what})", network, model.tokenizer, model.device)
