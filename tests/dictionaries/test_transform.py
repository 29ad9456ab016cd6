"""The transform code: its bits by hand, and what it costs on Gaussians against a plain computation."""

import numpy as np
import pytest
import torch

from rayscope.baselines.pca import transform
from rayscope.dictionaries import Transform, load
from rayscope.dictionaries.transform import MOST, water_filled
from rayscope.evaluation.calibration import Calibration
from rayscope.evaluation.codecs import DictionaryCodec
from rayscope.evaluation.metrics import fvu
from rayscope.streams.statistics import Moments
from rayscope.streams.stream import Vectors

# Max, Quantizing for Minimum Distortion (1960), table I: of a Gaussian of variance 1 at 0, 1, 2, ... bits
DISTORTION = [1, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499]
WIDTH, VECTORS = 24, 20_000


def made(*variances: float) -> Transform:
    width = len(variances)
    return Transform(width, width, 1, torch.eye(width), torch.zeros(width), torch.tensor(variances))


def test_bits_go_to_the_largest_remaining_distortion():
    """Of 32, 4 and 1: 32, 8, 4 of the second, then 2, 1 of the second and 1 of the third, ties to the greater."""
    found = [water_filled(torch.tensor([32.0, 4.0, 1.0]), budget).tolist() for budget in range(1, 7)]
    assert found == [[1, 0, 0], [2, 0, 0], [2, 1, 0], [3, 1, 0], [3, 2, 0], [3, 2, 1]]
    assert water_filled(torch.tensor([1.0, 1.0, 0.0]), 1000).tolist() == [MOST, MOST, 0]


def test_at_bits_has_them_and_value_bits_say_nothing():
    dictionary = made(32.0, 4.0, 1.0).at_bits(3.2)
    assert dictionary.allocation_L.tolist() == [3, 1, 0]
    assert (dictionary.k, dictionary.bits(), dictionary.bits(value_bits=2)) == (2, 4, 4)
    assert dictionary.mean_bits(torch.tensor([0, 0, 5])) == 4
    assert (dictionary.k_of_bits(3), dictionary.k_of_bits(5.5)) == (2, 3)
    assert dictionary.with_k(3).allocation_L.tolist() == [3, 2, 1]
    assert dictionary.bits(3) == 6
    assert dictionary.at_bits(6, max_k=2).allocation_L.tolist() == [4, 2, 0]
    codes = dictionary.encode_sparse(torch.randn(5, 3))
    assert codes.offsets.diff().tolist() == [2] * 5
    assert dictionary.bits_entropy(codes, torch.full((3,), 0.5)).tolist() == [4.0] * 5


def test_it_is_saved_with_its_bits_and_can_be_given_others(tmp_path):
    dictionary = made(32.0, 4.0, 1.0).at_bits(4)
    found = load(dictionary.save(tmp_path / "d"))
    assert isinstance(found, Transform)
    assert found.allocation_L.tolist() == [3, 1, 0]
    assert found.at_bits(6).allocation_L.tolist() == dictionary.at_bits(6).allocation_L.tolist()
    with pytest.raises(ValueError, match=r"variances .* greatest first"):
        made(1.0, 2.0)


@pytest.fixture(scope="module")
def gaussian() -> tuple[np.ndarray, np.ndarray]:
    """(variances, x_ND): rotated, and off the origin."""
    generator = np.random.default_rng(0)
    variances = np.geomspace(30, 0.05, WIDTH)
    rotation, _ = np.linalg.qr(generator.normal(size=(WIDTH, WIDTH)))
    x_ND = generator.normal(size=(3 * VECTORS, WIDTH)) * np.sqrt(variances) @ rotation.T + 5
    return variances, x_ND.astype(np.float32)


@pytest.mark.parametrize("budget", [6, 20, 45, 70])
def test_on_a_gaussian_it_costs_what_water_filling_says(gaussian, budget: int):
    """Within 2%: the distortion of each component at its bits, in plain numpy, from the true variances."""
    variances, x_ND = gaussian
    bits = np.zeros(WIDTH, int)
    for _ in range(budget):
        bits[np.argmax(variances / 4.0**bits)] += 1
    expected = (variances * np.array(DISTORTION)[bits]).sum() / variances.sum()
    fit, validation, test = torch.from_numpy(x_ND).split(VECTORS)
    moments = Moments()
    moments.update(fit)
    dictionary = transform(moments).at_bits(budget)
    assert abs(dictionary.allocation_L.numpy() - bits).sum() <= 2  # of variances that are nearly a factor of 4 apart
    nowhere_N = torch.zeros(VECTORS, dtype=torch.bool)
    seen = Calibration(WIDTH, ends=False)
    seen.update(dictionary.encode_sparse(validation), nowhere_N)
    codec = DictionaryCodec(dictionary, seen, [1, 8])
    assert codec.value_bits == (None,)
    label_N = torch.zeros(VECTORS, dtype=torch.int64)
    found = fvu(test, codec.reconstruct(Vectors(test, test, label_N, label_N, nowhere_N)))
    assert found == pytest.approx(expected, rel=0.02)
    level = np.sort(variances)[::-1]  # no code does better: the rate-distortion function of the Gaussian
    water = next(w for w in np.geomspace(30, 1e-4, 100_000) if np.log2(np.maximum(level / w, 1)).sum() / 2 >= budget)
    assert found > np.minimum(level, water).sum() / level.sum()
