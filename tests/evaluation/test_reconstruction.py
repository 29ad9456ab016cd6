"""Held-out vectors through meters: the metrics of all vectors at once, with values as they are and on levels."""

import pytest
import torch

from rayscope.baselines import pca
from rayscope.dictionaries import TopK
from rayscope.evaluation import metrics
from rayscope.evaluation.calibration import Calibration
from rayscope.evaluation.quantisation import Quantiser
from rayscope.evaluation.reconstruction import reconstruct
from rayscope.streams.planted import World
from rayscope.streams.statistics import Moments
from rayscope.streams.stream import Batch


def test_meters_hold_the_metrics_of_all_vectors_at_once(monkeypatch):
    world = World(40, 12, 2.0)
    stream = world.stream("test", 192 * 4, 192)
    held_out = Batch.join(stream)
    x_ND = held_out.activations["planted"]
    dictionary = TopK(12, 30, 3)
    dictionary.prepare(x_ND, 1000)
    moments = Moments()
    for batch in stream:
        moments.update(batch.activations["planted"])
    linear = pca(moments, 4, "topk")
    both = {world.site: {"rays": dictionary, "pca": linear}}
    whole = torch.ones(1, 12, dtype=torch.float64)  # documents of 64 vectors
    meters = reconstruct(both, held_out)[world.site]
    for name, d in both[world.site].items():
        found = meters[name].statistics()
        assert found["fvu"](whole).item() == pytest.approx(metrics.fvu(x_ND, d(x_ND).detach()), rel=1e-6)
        assert found["fvu"](metrics.bootstrap_weights(12, 50)).std() > 0
        assert meters[name].whole()["bits"] == d.bits()
    assert meters["pca"].statistics()["l0"](whole).item() == 4
    fired_L = (dictionary.encode(x_ND) != 0).any(0)
    assert meters["rays"].whole()["dead"] == pytest.approx(1 - fired_L.double().mean().item())

    validation = Batch.join(world.stream("validation", 192 * 2, 192))
    seen = Calibration(12)
    seen.update(linear.encode_sparse(validation.activations["planted"]), torch.zeros(384, dtype=torch.bool))
    nowhere_N = torch.zeros(len(x_ND), dtype=torch.bool)
    quantiser = Quantiser.fit(seen.values, torch.full((2 * 2 * 12,), 8))
    expected = metrics.fvu(x_ND, linear.decode_sparse(quantiser.quantise(linear.encode_sparse(x_ND), nowhere_N)))
    quantised = reconstruct(both, held_out, validation)[world.site]["pca"].statistics()["fvu"](whole).item()
    assert quantised == pytest.approx(expected, rel=1e-6)
    assert quantised != meters["pca"].statistics()["fvu"](whole).item()
    plain = reconstruct(both, held_out, validation, value_bits=())[world.site]["pca"].statistics()
    assert plain["fvu"](whole).item() == meters["pca"].statistics()["fvu"](whole).item()
    assert plain["bits_entropy"](whole).item() > 8 * 4
    monkeypatch.setattr("rayscope.evaluation.reconstruction.CHUNK", 100)
    again = reconstruct(both, held_out, validation)[world.site]["pca"].statistics()["fvu"](whole).item()
    assert again == pytest.approx(quantised, rel=1e-9)
