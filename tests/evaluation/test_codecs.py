"""Reference codecs against their closed forms, and a dictionary's codec against the dictionary."""

import math

import pytest
import torch
from torch import Tensor

from rayscope.dictionaries import TokenBiasTopK, TopK
from rayscope.evaluation import metrics
from rayscope.evaluation.calibration import Calibration
from rayscope.evaluation.codecs import REFERENCES, Codec, DictionaryCodec, references
from rayscope.evaluation.meter import Meter, Variance
from rayscope.evaluation.quantisation import Quantiser
from rayscope.streams.stream import Vectors


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """Of three documents; every fifth at position 0 and far from the others."""
    generator = torch.Generator().manual_seed(0)
    first_N = torch.arange(60) % 5 == 0
    x_ND = torch.randn(60, 4, generator=generator) + 2 + 8 * first_N[:, None]
    return Vectors(x_ND, x_ND, torch.arange(60) % 7, torch.arange(60) // 20, first_N)


def fvu(codec: Codec, vectors: Vectors, view: str) -> float:
    variance = Variance(4, 3)
    variance.update(vectors)
    meter = Meter(codec, variance)
    meter.update(vectors)
    return meter.statistics(view)["fvu"](torch.ones(1, 3).double()).item()


def test_references_have_the_explained_variance_of_what_they_know(vectors: Vectors):
    """Of everything 1; of the mean 0; of knowing position 0, n0 n1 / n |m0 - m1|^2 over the sum of squares."""
    x_ND, first_N = vectors.x_ND.double(), vectors.first_N
    m0_D, m1_D, mean_D = x_ND[first_N].mean(0), x_ND[~first_N].mean(0), x_ND.mean(0)
    squares, n0, n1 = (x_ND - mean_D).square().sum(), int(first_N.sum()), int((~first_N).sum())
    gap = (m0_D - m1_D).square().sum()
    known = references(m0_D, m1_D)
    assert tuple(known) == REFERENCES
    assert fvu(known["identity"], vectors, "included") == fvu(known["identity"], vectors, "excluded") == 0
    for name in ("mean", "position0"):
        assert fvu(known[name], vectors, "excluded") == pytest.approx(1)
    assert fvu(known["position0"], vectors, "included") == pytest.approx(1 - (n0 * n1 / 60 * gap / squares).item())
    # of the mean of later positions alone: the squares, and n times how far it is from the mean of all
    off = 60 * (m1_D - mean_D).square().sum() / squares
    assert fvu(known["mean"], vectors, "included") == pytest.approx(1 + off.item())


def test_references_keep_the_precision_of_what_they_are_given(vectors: Vectors):
    for name, codec in references(*torch.randn(2, 4, generator=torch.Generator().manual_seed(1))).items():
        x_hat_ND, codes = codec.reconstruct(vectors), codec.encode(vectors)
        assert x_hat_ND.dtype == torch.float32
        assert x_hat_ND.shape == vectors.x_ND.shape
        assert (len(codes), codes.latents, len(codes.values_M)) == (60, 0, 0), name


def test_a_reference_has_no_metric_of_codes(vectors: Vectors):
    variance = Variance(4, 3)
    variance.update(vectors)
    for codec in references(torch.zeros(4), torch.ones(4)).values():
        meter = Meter(codec, variance)
        meter.update(vectors)
        assert set(meter.statistics()) == {"fvu", "l2_ratio"}
        assert meter.whole() == {}
        assert (codec.kind, codec.k, codec.latents, codec.value_bits) == ("codec", None, 0, (None,))


@pytest.mark.parametrize("value_bits", [[8, 1], []])
def test_a_dictionarys_codec_encodes_once_and_decodes_what_the_levels_leave(vectors: Vectors, value_bits: list[int]):
    dictionary = TokenBiasTopK(4, 6, 2, vocabulary=7)
    dictionary.prepare(vectors.x_ND, 100, tokens_N=vectors.tokens_N)
    seen = Calibration(6)
    codes = dictionary.encode_sparse(vectors.x_ND, vectors.tokens_N)
    seen.update(codes, vectors.first_N)
    codec = DictionaryCodec(dictionary, seen, value_bits)
    found = codec.encode(vectors)
    assert torch.equal(found.values_M, codes.values_M)  # as they are
    assert codec.value_bits == ((1, 8) if value_bits else (None,))
    for b in codec.value_bits:
        left = codes
        if b:
            bits_C = torch.full((2 * 2 * 6,), b)
            left = Quantiser.fit(seen.values, bits_C).quantise(codes, vectors.first_N)
            assert not torch.equal(left.values_M, codes.values_M)
        expected = dictionary.decode_sparse(left, vectors.tokens_N)
        assert torch.equal(codec.decode(found, vectors, b), expected)
    assert torch.equal(codec.reconstruct(vectors), expected)  # the most bits
    assert (codec.kind, codec.k, codec.latents) == ("token_bias_topk", 2, 6)


def calibrated(vectors: Vectors) -> tuple[TopK, Calibration, Variance]:
    """A dictionary, its codes of the vectors, and how these vary over three documents."""
    dictionary, seen, variance = TopK(4, 30, 2), Calibration(30), Variance(4, 3)
    dictionary.prepare(vectors.x_ND, 100)
    seen.update(dictionary.encode_sparse(vectors.x_ND), vectors.first_N)
    variance.update(vectors)
    return dictionary, seen, variance


def test_a_meter_holds_each_number_of_bits_and_codes_once(vectors: Vectors):
    dictionary, seen, variance = calibrated(vectors)
    codec = DictionaryCodec(dictionary, seen, [1, 3, 8])
    meter = Meter(codec, variance)
    meter.update(vectors)
    whole = torch.ones(1, 3).double()
    for b in (1, 3, 8):
        x_hat_ND = codec.decode(codec.encode(vectors), vectors, b)
        expected = metrics.fvu(vectors.x_ND, x_hat_ND)
        assert meter.statistics("included", b)["fvu"](whole).item() == pytest.approx(expected, rel=1e-6)
        assert meter.whole("included", b)["bits"] == dictionary.bits(value_bits=b)
        entropy = dictionary.bits_entropy(codec.encode(vectors), seen.frequency("included"), b).mean().item()
        assert meter.statistics("included", b)["bits_entropy"](whole).item() == pytest.approx(entropy)
        assert meter.whole(value_bits=b)["table_floats"] == codec.quantisers[b].floats
    assert meter.statistics("included")["fvu"](whole) == meter.statistics("included", 8)["fvu"](whole)


def of_view(x: Tensor, vectors: Vectors, view: str) -> Tensor:
    return x if view == "included" else x[~vectors.first_N]


@pytest.mark.parametrize("view", ["excluded", "included"])
def test_metrics_of_codes_are_those_of_the_dense_codes(vectors: Vectors, view: str):
    dictionary, seen, variance = calibrated(vectors)
    meter = Meter(DictionaryCodec(dictionary, seen), variance)
    for part in (vectors.take(torch.arange(25)), vectors.take(torch.arange(25, 60))):
        meter.update(part)
    on_NL = of_view(dictionary.encode(vectors.x_ND) != 0, vectors, view)
    documents_N = of_view(vectors.documents_N, vectors, view)
    weights_BG = torch.tensor([[1.0, 1, 1], [0, 2, 1]]).double()
    weights_BN = weights_BG[:, documents_N]
    found = {name: statistic(weights_BG) for name, statistic in meter.statistics(view).items()}
    l0_B = weights_BN @ on_NL.sum(1).double() / weights_BN.sum(1)
    torch.testing.assert_close(found["l0"], l0_B)
    torch.testing.assert_close(found["density"], l0_B / 30)
    p_L = (on_NL.sum(0) + 0.5).double() / (len(on_NL) + 1)
    bits_N = -torch.where(on_NL, p_L, 1 - p_L).log2().sum(1) + 8 * on_NL.sum(1)
    torch.testing.assert_close(found["bits_entropy"], weights_BN @ bits_N / weights_BN.sum(1))
    dead = (~on_NL.any(0)).double().mean().item()
    assert 0 < dead < 1
    floats = 2 * len(seen.values.count_C.nonzero()) + 2 * 2**8  # ranges, and the levels shared at each place
    assert meter.whole(view) == {"dead": dead, "bits": dictionary.bits(), "table_floats": floats}


def test_without_validation_bits_entropy_is_not_known(vectors: Vectors):
    dictionary = TopK(4, 30, 2)
    dictionary.prepare(vectors.x_ND, 100)
    variance = Variance(4, 3)
    variance.update(vectors)
    meter = Meter(DictionaryCodec(dictionary), variance)
    meter.update(vectors)
    assert math.isnan(meter.statistics()["bits_entropy"](torch.ones(1, 3).double()).item())
