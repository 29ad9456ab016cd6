"""Surrogates: what each null keeps of the real stream, exactly or to sampling, and what it does not."""

import pytest
import torch
from torch import Tensor

from rayscope.baselines import pca
from rayscope.dictionaries import TopK
from rayscope.evaluation.metrics import fvu
from rayscope.model.sites import Site, resolve
from rayscope.streams.harvest import ActivationStream
from rayscope.streams.statistics import Moments, TokenSums
from rayscope.streams.stream import Batch, Stream
from rayscope.streams.surrogates import KINDS, SiteSample, Surrogate, sample_sites
from rayscope.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
TWO = ["blocks.1.mlp.hook_post", "blocks.2.hook_resid_post"]
SITE = Site("made.up", 6, 0)


class MadeUp(Stream):
    """Skewed, correlated vectors of rank 5 in 6 dimensions whose mean depends on the token;
    norms vary; a large mean.
    """

    def __init__(self, tokens: int, batch_size: int = 500, seed: int = 0, vocabulary: int = 40):
        super().__init__([SITE], tokens=tokens, batch_size=batch_size)
        world = torch.Generator().manual_seed(99)
        self.means_VD = 1.5 * torch.randn(vocabulary, 5, generator=world)
        self.mixing = torch.randn(5, 6, generator=world) * torch.tensor([5.0, 2, 1, 1, 0.3])[:, None]
        self.p_V = 1 / torch.arange(1.0, vocabulary + 1)
        self.seed = seed

    def __getitem__(self, number: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1000 + number)
        tokens_N = torch.multinomial(self.p_V, self.batch_size, replacement=True, generator=generator)
        inner = torch.randn(self.batch_size, 5, generator=generator).exp() + self.means_VD[tokens_N]
        x_ND = inner * torch.rand(self.batch_size, 1, generator=generator) @ self.mixing + 30
        rest = torch.arange(self.batch_size)
        return Batch(tokens_N, tokens_N.roll(1), rest // 7, rest % 7 + 1, {SITE.key: x_ND})


@pytest.fixture(scope="module")
def real() -> MadeUp:
    return MadeUp(40_000)


@pytest.fixture(scope="module")
def known(real: MadeUp) -> dict[str, SiteSample]:
    return sample_sites(real, 40, sample=20_000)


def whole(stream: Stream) -> tuple[Tensor, Batch]:
    batch = Batch.join(stream)
    return batch.activations[SITE.key].double(), batch


def components(x_ND: Tensor, known: SiteSample) -> Tensor:
    return (x_ND - known.moments.mean_D) @ torch.linalg.eigh(known.moments.covariance_DD)[1].flip(1)[:, :5]


@pytest.mark.parametrize("kind", KINDS)
def test_mean_covariance_and_labels_are_those_of_the_real_stream(real, known, kind):
    x_ND, batch = whole(Surrogate(kind, known, real, tokens=100_000))
    moments = known[SITE.key].moments
    y_NK = components(x_ND, known[SITE.key]) / torch.linalg.eigvalsh(moments.covariance_DD).flip(0)[:5].sqrt()
    assert y_NK.mean(0).abs().max() < 0.03  # the labels' own sampling for token_mixture, 5 standard errors for the rest
    assert (y_NK.T @ y_NK / len(y_NK) - torch.eye(5)).abs().max() < 0.06
    assert batch.activations[SITE.key].dtype == torch.float32
    assert torch.equal(batch.take(torch.arange(500)).tokens_N, real[0].tokens_N)


@pytest.mark.parametrize("kind", KINDS)
def test_the_matched_sample_has_the_moments_of_the_real_one_and_so_the_fvu_of_any_pca_prefix(known, real, kind):
    """The PCA is fitted on each sample's own moments, and on the training text's for both."""
    held_out = list(MadeUp(20_000, seed=5))
    batch = Batch.join(held_out)
    matched = Surrogate(kind, known, real).match(held_out)
    x_ND, surrogate_ND = batch.activations[SITE.key], matched.activations[SITE.key]
    assert (x_ND - surrogate_ND).norm() > 0.5 * (x_ND - x_ND.mean(0)).norm()
    assert torch.equal(matched.documents_N, batch.documents_N)
    own, its = Moments(), Moments()
    own.update(x_ND)
    its.update(surrogate_ND)
    torch.testing.assert_close(its.mean_D, own.mean_D, rtol=1e-7, atol=0)
    scale = own.covariance_DD.trace().item()
    torch.testing.assert_close(its.covariance_DD, own.covariance_DD, rtol=0, atol=1e-7 * scale)
    for k in (1, 2, 3):
        expected = fvu(x_ND, pca(own, k, "prefix")(x_ND))
        assert fvu(surrogate_ND, pca(its, k, "prefix")(surrogate_ND)) == pytest.approx(expected, rel=1e-6)
        fitted = pca(known[SITE.key].moments, k, "prefix")
        assert fvu(surrogate_ND, fitted(surrogate_ND)) == pytest.approx(fvu(x_ND, fitted(x_ND)), rel=1e-6)


def test_what_each_kind_keeps_and_loses(known, real):
    """The quantiles of each whitened PC; the spread of whitened norms; what the token explains."""
    x_ND, batch = whole(real)
    covariance = known[SITE.key].moments.covariance_DD
    levels = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98], dtype=torch.float64)

    def facts(kind: str | None) -> tuple[float, Tensor, float]:
        found = x_ND if kind is None else whole(Surrogate(kind, known, real))[0]
        scores = components(found, known[SITE.key])
        y_NK = scores / torch.linalg.eigvalsh(covariance).flip(0)[:5].sqrt()
        sums = TokenSums(40, 6)
        sums.update(batch.tokens_N, found)
        explained = 1 - fvu(found, (sums.sums_VD / sums.counts_V[:, None])[batch.tokens_N])
        return y_NK.norm(dim=1).std().item(), y_NK.quantile(levels, dim=0), explained

    norms, pcs, tokens = facts(None)
    assert norms > 0.95  # a Gaussian's would be .69
    assert tokens > 0.15
    gaussian, elliptical, shuffled, mixture = (facts(kind) for kind in KINDS)
    assert gaussian[0] == pytest.approx(0.69, abs=0.02)
    normal = torch.distributions.Normal(0.0, 1.0).icdf(levels)[:, None].expand(5, 5)
    torch.testing.assert_close(gaussian[1], normal, atol=0.05, rtol=0)
    assert elliptical[0] == pytest.approx(norms, rel=0.05)
    torch.testing.assert_close(shuffled[1], pcs, atol=0.1, rtol=0)
    assert (pcs - normal).abs().max() > 0.3
    assert mixture[2] == pytest.approx(tokens, rel=0.05)
    assert max(gaussian[2], elliptical[2], shuffled[2]) < 0.005


def test_shuffled_components_are_independent(known, real):
    def energy_correlation(x_ND: Tensor) -> float:
        squares = components(x_ND, known[SITE.key]).square()
        return (torch.corrcoef(squares.T) - torch.eye(5)).abs().max().item()

    assert energy_correlation(whole(real)[0]) > 0.1
    assert energy_correlation(whole(Surrogate("pc_shuffled", known, real))[0]) < 0.04


def test_token_means_are_shrunk_by_the_noise_in_them():
    """Pure noise, where every token's mean is chance, has no token means left;
    a rare token is nearer to the mean of all.
    """

    class Noise(MadeUp):
        def __getitem__(self, number: int) -> Batch:
            batch = super().__getitem__(number)
            x_ND = torch.randn(len(batch), 6, generator=torch.Generator().manual_seed(number))
            return Batch(*batch.labels, {SITE.key: x_ND})

    noise = Noise(2_000)
    (law,) = Surrogate("token_mixture", sample_sites(noise, 40), noise).laws.values()
    plain = (1 / sample_sites(noise, 40)[SITE.key].token_sums.counts_V).sqrt()
    assert (law.means_VK.norm(dim=1) / plain).max() < 0.5 * 6**0.5
    signal = MadeUp(2_000)
    known = sample_sites(signal, 41)
    (law,) = Surrogate("token_mixture", known, signal).laws.values()
    sums = known[SITE.key].token_sums
    plain_VD = sums.sums_VD / sums.counts_V.clamp_min(1)[:, None] - known[SITE.key].moments.mean_D
    kept_V = (law.means_VK.double() @ law.whitening.basis_KD).norm(dim=1) / plain_VD.norm(dim=1)
    frequent, rare = sums.counts_V > 100, (sums.counts_V > 0) & (sums.counts_V < 20)
    assert kept_V[frequent].min() > 0.9
    assert kept_V[rare].mean() < kept_V[frequent].mean()
    assert not law.means_VK[40].any()  # never seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_depends_on_seed_number_and_its_site_alone(model, packed, kind):
    sites = resolve(TWO, model)
    stream = ActivationStream(model, packed.train, sites, tokens=64 * 12, batch_size=64, round_tokens=512)
    known = sample_sites(stream, model.network.config.vocab_size)
    surrogate = Surrogate(kind, known, stream, seed=2)
    seen = list(surrogate)
    alone = Surrogate(kind, known, stream, sites=sites[1:], seed=2)
    for number in (7, 0, 11):
        again, key = surrogate[number], sites[1].key
        assert torch.equal(again.activations[key], seen[number].activations[key])
        assert torch.equal(again.activations[key], alone[number].activations[key])
        assert torch.equal(again.documents_N, stream[number].documents_N)
    assert not torch.equal(seen[0].activations[key], Surrogate(kind, known, stream, seed=3)[0].activations[key])
    assert not torch.equal(seen[0].activations[key], seen[1].activations[key])
    later = Surrogate(kind, known, stream, seed=2)
    later.load_state_dict({"next_batch": 9})
    assert [torch.equal(a.activations[key], b.activations[key]) for a, b in zip(later, seen[9:], strict=True)] == [
        True
    ] * 3


def test_dictionaries_train_on_a_surrogate_without_the_model(model, packed, tmp_path):
    (site,) = resolve(TWO[1:], model)
    stream = ActivationStream(model, packed.train, [site], tokens=64 * 12, batch_size=64, round_tokens=512)
    surrogate = Surrogate("gaussian", sample_sites(stream, model.network.config.vocab_size), stream)
    stream.harvest = None  # type: ignore[assignment]
    dictionary = TopK(site.width, 64, 3, lr=0.01)
    before = dictionary.W_dec_LD.detach().clone()
    train(surrogate, {site: {"topk": dictionary}}, tmp_path)
    assert not torch.equal(dictionary.W_dec_LD, before)
    assert dictionary.b_dec_D.norm() > 0


def test_what_cannot_be_is_refused(real, known):
    with pytest.raises(ValueError, match="kind='uniform'; a surrogate is one of gaussian, elliptical"):
        Surrogate("uniform", known, real)
    with pytest.raises(ValueError, match=r"nothing is known of made\.up"):
        Surrogate("gaussian", {}, real)
    with pytest.raises(ValueError, match="match: 6 vectors of width 6"):
        Surrogate("gaussian", known, real).match(real[0].take(torch.arange(6)))
