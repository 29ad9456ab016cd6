"""A dictionary that writes another site than it reads: the step, the folding and the trainer serve it as they are.

N vectors, D and E widths of input and output, L latents.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import randn
from rayscope.dictionaries import TopK
from rayscope.dictionaries.learned.units import Units
from rayscope.model.sites import Site
from rayscope.model.splicing import CleanPass
from rayscope.streams.stream import Batch
from rayscope.training.finetuning import Tuner
from rayscope.training.trainer import DictionaryTrainer

pytestmark = pytest.mark.usefixtures("one_thread")
D, E, L = 12, 20, 96


class Across(TopK):
    """Reads width D, writes width E. It has no kind of its own: it is not for saving."""

    output_width = E

    def __init__(self):
        super().__init__(D, L, k=3, seed=3, lr=2e-2)
        self.units["output"] = Units(E, whiten=False)
        self.W_dec_LD = nn.Parameter(F.normalize(randn(L, E, seed=4)))
        self.b_dec_D = nn.Parameter(torch.zeros(E))
        self.b_in_D = nn.Parameter(torch.zeros(D))
        self.gain_L = torch.ones(L)

    @property
    def centre_D(self):
        return self.b_in_D

    def fold_input(self, units):
        super().fold_input(units)
        self.b_in_D.copy_(units.invert(self.b_in_D))


@dataclass(frozen=True)
class Pair(Site):
    """Read here, reconstructed at `written`."""

    written: Site

    @property
    def output(self):
        return self.written


READ = Pair("blocks.0.hook_resid_pre", D, 0, written=Site("blocks.1.hook_mlp_out", E, 1))
RAYS_FD, IMAGES_FE = F.normalize(randn(24, D, seed=1)), 300 * F.normalize(randn(24, E, seed=2)) + 20


def both(N=512, seed=0):
    """Few of 24 rays in x, and what each of them is mapped to, of another scale and off-centre."""
    generator = torch.Generator().manual_seed(seed)
    z_NF = (torch.rand(N, 24, generator=generator) < 0.08) * (1 + torch.rand(N, 24, generator=generator))
    return z_NF @ RAYS_FD, z_NF @ IMAGES_FE - 50


@pytest.fixture(scope="module")
def learned():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dictionary, steps = Across(), 200
    x_ND, target_NE = both(4096)
    dictionary.prepare(x_ND, dead_window=5_000, target_ND=target_NE)
    trainer = DictionaryTrainer({READ: {"one": dictionary}}, steps=steps, batch_size=256)
    configured = trainer.configure_optimizers()
    none_N = torch.zeros(256, dtype=torch.int64)
    for step in range(steps):
        x_ND, target_NE = both(256, seed=step + 1)
        batch = Batch(none_N, none_N, none_N, none_N, {READ.key: x_ND, READ.output.key: target_NE})
        trainer.training_step(batch, step).backward()
        trainer.on_before_optimizer_step(configured["optimizer"])
        configured["optimizer"].step()
        trainer.after_step()
        configured["optimizer"].zero_grad()
        configured["lr_scheduler"]["scheduler"].step()
    torch.set_num_threads(threads)
    return dictionary.eval()


def test_it_learns_to_write_what_the_rays_of_its_input_are_mapped_to(learned):
    x_ND, target_NE = both(2000, seed=10**6)
    with torch.no_grad():
        missed = (target_NE - learned(x_ND)).square().sum() / (target_NE - target_NE.mean(0)).square().sum()
    assert missed < 0.3  # 1 by the mean
    assert learned.units.inner.scale > 20 * learned.units.outer.scale  # each side has its own units


def test_folding_both_sides_changes_nothing_that_is_computed(learned):
    x_ND, _ = both(200, seed=10**6)
    folded = learned.to_save()
    assert [units.scale.item() for units in folded.units.values()] == [1, 1]
    assert {"input_scale", "output_scale"} <= set(folded.provenance)
    codes = learned.encode_sparse(x_ND)
    assert folded.encode_sparse(x_ND).indices_M.equal(codes.indices_M)
    torch.testing.assert_close(folded.encode_sparse(x_ND).values_M, codes.values_M, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded(x_ND), learned(x_ND), rtol=1e-4, atol=1e-2)
    folded.unfold()
    again = folded.training_pass(*both(seed=5)[:1], target_ND=both(seed=5)[1])
    torch.testing.assert_close(again.loss, learned.training_pass(both(seed=5)[0], None, both(seed=5)[1]).loss)


def test_its_state_is_named_as_any_dictionary_s_and_its_output_s_is_added(learned):
    fresh = Across()
    fresh.load_state_dict(learned.state_dict())
    assert all(value.equal(fresh.state_dict()[name]) for name, value in learned.state_dict().items())
    assert set(learned.state_dict()) - set(TopK(D, L, 3).state_dict()) == {"b_in_D", "gain_L", "units.output.scale"}


def test_a_step_on_kl_reads_both_sites(model, packed):
    site = Pair("blocks.0.hook_resid_post", 32, 0, written=Site("blocks.1.hook_mlp_out", 32, 1))
    dictionary = TopK(32, 64, k=4, seed=0)
    tokens_RC = torch.from_numpy(packed.train.tokens[:4].astype("int64"))
    clean = CleanPass.run(model, tokens_RC, [site, site.output])
    x_ND, target_ND = (clean.activations[key].flatten(0, 1) for key in (site.key, site.output.key))
    dictionary.prepare(x_ND, dead_window=5_000, target_ND=target_ND)
    options = {"steps": 2, "tokens_per_batch": tokens_RC.numel(), "weight": 1.0, "lr": 1e-3, "clip": 1.0}
    tuner = Tuner(model, {site: {"one": dictionary}}, **options)
    before = dictionary.W_dec_LD.clone()
    tuner.step(tokens_RC)
    assert tuner.metrics[0]["kl"] > 0
    assert not dictionary.W_dec_LD.equal(before)
