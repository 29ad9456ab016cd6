"""Random tensors, a training loop and a planted world, for the tests of dictionaries and baselines.

N vectors, D site width, L latents, F planted features.
"""

from functools import partial

import torch
from torch.nn import functional as F


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(104_729 + seed), dtype=dtype)


randn64 = partial(randn, dtype=torch.float64)


def sample(N=200, D=16, seed=0):
    """Off-centre, of a scale far from 1."""
    return 7 * randn(N, D, seed=seed) + 20


def tokens_of(x_ND):
    """A token for each vector, 7 different ones."""
    return x_ND[:, 0].abs().long() % 7


def fit(dictionary, batches, lr_at=lambda step: 1.0, tokens=tokens_of):
    optimizer = torch.optim.Adam([p for p in dictionary.parameters() if p.requires_grad], lr=dictionary.lr)
    for step, x_ND in enumerate(batches):
        optimizer.param_groups[0]["lr"] = dictionary.lr * lr_at(step)
        optimizer.zero_grad()
        passed = dictionary.training_pass(x_ND, tokens(x_ND))
        passed.loss.backward()
        dictionary.project_gradients()
        optimizer.step()
        dictionary.after_step(passed)


def planted_world(D, features, active, N, seed):
    """x = mean + sum of the features that fire; feature i fires with p ~ 1 / (i + 8), `active` of them on average."""
    generator = torch.Generator().manual_seed(982_451_653 + seed)
    world = torch.Generator().manual_seed(15_485_863)
    directions_FD = F.normalize(torch.randn(features, D, generator=world))
    mean_D = torch.randn(D, generator=world)
    firing_F = 1 / (torch.arange(features) + 8.0)
    firing_F *= active / firing_F.sum()
    fires_NF = torch.rand(N, features, generator=generator) < firing_F
    sizes_NF = 1 + 0.25 * torch.randn(N, features, generator=generator).abs()
    return directions_FD, mean_D + (fires_NF * sizes_NF) @ directions_FD
