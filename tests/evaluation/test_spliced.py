"""Which points are spliced: by hand, and the error that validation predicts against the error that is measured."""

import pytest
import torch

from rayscope.dictionaries import Linear
from rayscope.evaluation.calibration import Calibration
from rayscope.evaluation.codecs import DictionaryCodec
from rayscope.evaluation.entry import Entry
from rayscope.evaluation.spliced import spliced_views, validation_errors, worth_it
from rayscope.model.sites import Site

SITE = Site("blocks.0.hook_resid_post", 4, 0)


def entry(method: str, k: int, coder: str = "own", seed: int = 0) -> Entry:
    dictionary = Linear(4, 4, k, "prefix", torch.eye(4))
    return Entry(SITE, method, "baseline", k, seed, dictionary, f"{method}_k{k}_{coder}_{seed}", coder)


def test_the_front_without_what_gains_less_than_1_percent():
    assert worth_it([10, 20, 30, 40, 50], [1.0, 0.9, 0.2, 0.199, 0.1]) == [0, 2, 4]  # 20 is above the line, 40 too near
    assert worth_it([10, 20], [1.0, 1.0]) == [0]


def test_each_curve_has_a_front_and_each_entry_its_most_bits():
    """Bits are k (b + 1): 2 and 9 at k 1, 4 and 18 at k 2. Of method a k 2 at 1 bit is above the line."""
    errors = {
        entry("a", 1): {1: 8.0, 8: 4.0},
        entry("a", 2): {1: 7.9, 8: 1.0},
        entry("a", 2, coder="omp"): {1: 7.9, 8: 1.0},
        entry("a", 2, seed=1): {1: 7.9, 8: 7.85},
    }
    both, later, nothing = ["excluded", "included"], ["excluded"], []
    assert spliced_views(errors) == {
        "a_k1_own_0": {1: later, 8: both},
        "a_k2_own_0": {1: nothing, 8: both},
        "a_k2_omp_0": {1: later, 8: both},
        "a_k2_own_1": {1: later, 8: both},
    }


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_error_predicted_is_that_of_decoded_codes(bits: int):
    """Of orthogonal directions; position 0 does not count."""
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(3000, 6, generator=generator)
    dictionary = Linear(6, 6, 3, "topk", torch.eye(6))
    codes, first_N = dictionary.encode_sparse(x_ND), torch.arange(3000) % 3 == 0
    seen = Calibration(6)
    seen.update(codes, first_N)
    seen.error = (x_ND - dictionary(x_ND))[~first_N].square().sum().item()
    codec = DictionaryCodec(dictionary, seen, [bits])
    x_hat_ND = dictionary.decode_sparse(codec.quantisers[bits].quantise(codes, first_N))
    expected = (x_ND - x_hat_ND)[~first_N].square().sum().item()
    assert validation_errors(codec, seen)[bits] == pytest.approx(expected, rel=1e-5)
