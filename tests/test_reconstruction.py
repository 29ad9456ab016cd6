import pytest
import torch

from rayscope import metrics
from rayscope.baselines import fit_sites, pca_topk
from rayscope.dictionaries import Codes, TopK
from rayscope.evaluation import bits_per_token
from rayscope.planted import World
from rayscope.reconstruction import reconstruction


class Halved:
    def quantise(self, codes: Codes) -> Codes:
        return Codes(codes.indices_M, codes.values_M / 2, codes.offsets, codes.latents)


def test_the_table_is_the_metrics_of_all_vectors_at_once_however_they_are_cut():
    world = World(40, 12, 2.0)
    stream = world.stream("test", 192 * 4, 192)
    whole = list(stream)
    x_ND = torch.cat([batch.activations["planted"] for batch in whole])
    dictionary = TopK(12, 30, 3)
    dictionary.prepare(x_ND, 1000)
    linear = pca_topk(fit_sites(None, stream.sites, stream)["planted"]).with_k(4)
    both = {world.site: {"rays": dictionary, "pca": linear}}
    table = reconstruction(both, stream, draws=300)
    values = table.set_index(["dictionary", "metric"])
    for name, d in both[world.site].items():
        row = values.loc[name, "fvu"]
        assert row["value"] == pytest.approx(metrics.fvu(x_ND, d(x_ND).detach()), rel=1e-6)
        assert row["low"] < row["value"] < row["high"]
        assert values.loc[name, "bits"]["value"] == bits_per_token(d)
    assert values.loc["pca", "l0"]["value"] == 4
    fired_L = (dictionary.encode(x_ND) != 0).any(0)
    assert values.loc["rays", "dead"]["value"] == pytest.approx(1 - fired_L.double().mean().item())
    assert set(table["tokens"]) == {192 * 4}
    pieces = [batch.take(torch.arange(start, start + 48)) for batch in whole for start in range(0, 192, 48)]
    again = reconstruction(both, reversed(pieces), draws=300).set_index(["dictionary", "metric"])
    assert again["value"].to_list() == pytest.approx(values["value"].to_list(), rel=1e-6)

    halved = reconstruction(both, stream, quantisers={world.site: {"pca": Halved()}}, draws=10)
    halved = halved.set_index(["dictionary", "metric"])["value"]
    expected = metrics.fvu(x_ND, linear.decode(linear.encode(x_ND) / 2))
    assert halved["pca", "fvu"] == pytest.approx(expected, rel=1e-6)
    assert halved["rays", "fvu"] == values.loc["rays", "fvu"]["value"]


def test_no_batch_is_refused():
    with pytest.raises(ValueError, match="batches: none was given"):
        reconstruction({}, [])
