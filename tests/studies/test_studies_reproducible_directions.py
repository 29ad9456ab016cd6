"""Reproducible directions: halves share no document;
matches, correlations and what tokens explain, by hand and by numpy;
planted rays are found again and those of a Gaussian are not; the study on a model made here."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from rayscope.cli.command_line import main
from rayscope.dictionaries import Codes, Learned, TopK
from rayscope.evaluation.metrics import bootstrap_weights
from rayscope.model.sites import resolve
from rayscope.streams.halves import half_of_rows, halves
from rayscope.streams.planted import World
from rayscope.streams.source import Source
from rayscope.streams.stream import Batch
from rayscope.streams.surrogates import Surrogate, sample_sites
from rayscope.studies.reproducible_directions.counted import ratio
from rayscope.studies.reproducible_directions.reproduced import (
    COUNTS,
    HeldOut,
    Reading,
    by_latent,
    correlation,
    explained_variance,
    reproduced,
)
from rayscope.studies.reproducible_directions.streams import Group, Streams, groups
from rayscope.studies.reproducible_directions.study import reproducible_directions
from rayscope.studies.setting import Setting
from rayscope.text import Rows
from rayscope.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_no_document_is_in_both_halves(model, packed):
    source = Source(model, packed)
    sides = halves(source, 10**6, stretches=16)
    first, second = (set(np.unique(side.text.train.documents)) for side in sides)
    assert not first & second
    sizes = [len(side.text.train) for side in sides]
    assert sum(sizes) >= len(packed.train) - 16  # at most a row at each border
    assert abs(sizes[0] - sizes[1]) < 0.3 * len(packed.train)
    for side in sides:
        assert side.text.test is packed.test
        assert side.text.train.counts.sum() == side.text.train.tokens.size
    few = halves(source, 640, stretches=16)[0].text.train  # 40 rows of 32 hold twice as many
    assert len(few) == 40
    whole = sides[0].text.train
    assert (
        few.documents.max() > 0.9 * whole.documents.max() > 2 * whole.documents[:40].max()
    )  # from the whole of the half


def test_a_document_belongs_to_the_stretch_in_which_it_begins():
    documents_RC = np.array([[0, 0], [0, 1], [1, 1], [1, 1], [1, 2], [3, 4], [5, 5], [5, 5]])
    # stretches of two rows: 0 and 1 begin in the first, 2 and 3, 4 in the third, 5 in the fourth
    rows = Rows(documents_RC, documents_RC, np.zeros(6))
    assert half_of_rows(rows, 4).tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    # each row its own stretch: 1 begins in the second row, 2 in the fifth
    assert half_of_rows(rows, 64).tolist() == [0, -1, 1, 1, -1, 1, 0, 0]


def test_one_document_cannot_be_halved(model, packed):
    train = Rows(packed.train.tokens[:9], np.zeros_like(packed.train.documents[:9]), packed.train.counts)
    with pytest.raises(ValueError, match="9 training rows cannot be halved by document"):
        halves(Source(model, replace(packed, train=train)), 100)


def held_out(documents_N: torch.Tensor, draws: int = 20) -> HeldOut:
    batch = Batch(documents_N, documents_N, documents_N, documents_N, {})
    return HeldOut(batch, bootstrap_weights(len(documents_N.unique()), draws, 3))


def test_correlation_and_variance_from_sums_by_document_are_numpys_on_the_resample():
    generator = torch.Generator().manual_seed(0)
    documents_N = torch.randint(7, (300,), generator=generator) * 10  # numbers need not be 0, 1, ...
    a_NC = torch.randn(300, 4, generator=generator).double().relu() + 2
    b_NC = 0.5 * a_NC + torch.randn(300, 4, generator=generator).double()
    b_NC[:, 3] = 0  # a silent latent
    held = held_out(documents_N)
    found_BC, r2_BC = correlation(held, a_NC, b_NC), explained_variance(held, a_NC, b_NC)
    for draw, weights_G in enumerate(held.weights_BG.long()):
        of_N = weights_G[documents_N // 10].numpy()
        a, b = (x.numpy().repeat(of_N, axis=0) for x in (a_NC, b_NC))
        expected = [np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(3)]
        assert found_BC[draw].tolist() == pytest.approx([*expected, 0.0])
        r2 = 1 - ((a - b) ** 2).sum(0) / ((a - a_NC.mean(0).numpy()) ** 2).sum(0)
        assert r2_BC[draw].tolist() == pytest.approx(r2.tolist())


def test_what_a_token_explains_by_hand():
    """Training: token 5 has 1 and 3, token 9 has 0, token 2 has 4 and is not in test, so means 2 and 0, and 2 of all;
    test: 3 and 1 at 5, 0 at 9, and token 7 never seen. A second latent fires once, at 9."""
    seen_MC = torch.tensor([[1.0, 0], [0, 6], [3, 0], [4, 0]])
    here_N, a_NC = torch.tensor([5, 5, 9, 7]), torch.tensor([[3.0], [1.0], [0.0], [0.0]]).double()
    predicted_NC = Reading.of(here_N, torch.tensor([5, 9, 5, 2])).means(by_latent(Codes.of_dense(seen_MC)).tocoo())
    assert predicted_NC.tolist() == [[2, 0], [2, 0], [0, 6], [2, 1.5]]
    held = replace(held_out(torch.zeros(4, dtype=torch.long)), weights_BG=torch.ones(1, 1).double())
    # residuals 1, -1, 0, -2; about their mean of 1 the activations have 4 + 0 + 1 + 1
    assert explained_variance(held, a_NC, predicted_NC[:, :1]).item() == pytest.approx(1 - (2 + 4) / 6)


def planted_readings(seed: int) -> Batch:
    """Eight latents, each a dimension: one is the current token 1, one the previous token 2, one the position 3, five
    are nothing of the kind."""
    generator = torch.Generator().manual_seed(seed)
    tokens_N, previous_N, positions_N = torch.randint(1, 9, (3, 2000), generator=generator)
    x_ND = torch.rand(2000, 8, generator=generator) * (torch.rand(2000, 8, generator=generator) < 0.2)
    x_ND[:, :3] = torch.stack([tokens_N == 1, previous_N == 2, positions_N == 3], 1).float()
    return Batch(tokens_N, previous_N, torch.arange(2000) // 50, positions_N, {"it": x_ND})


def rays(rows_LD: torch.Tensor) -> TopK:
    dictionary = TopK(rows_LD.shape[1], len(rows_LD), len(rows_LD))
    with torch.no_grad():
        dictionary.W_dec_LD.copy_(rows_LD)
        dictionary.W_enc_LD.copy_(rows_LD)
    return dictionary


def test_counts_by_hand():
    one = torch.eye(8)
    close = one.clone()
    close[7, 6] = 0.6  # cosine .857: enough at .7, not at .9
    same, moved = rays(one), rays(torch.nn.functional.normalize(close)[torch.randperm(8)])
    weights_BG = torch.cat([torch.ones(1, 40), torch.zeros(1, 40).index_fill_(1, torch.tensor([4]), 40)]).double()
    held = HeldOut(planted_readings(1), weights_BG)
    both = {"it": [[same, same], [same, moved]]}
    first, second = reproduced(both, [planted_readings(0)], held, taus=(0.7, 0.9), explained=0.7)["it"]
    assert {name: first[0.7, name].tolist()[0] for name in COUNTS} == {
        "all": 8, "current_token": 1, "previous_token": 1, "beyond_tokens": 6, "beyond_tokens_and_position": 5,
    }  # fmt: skip
    assert [second[0.7, name][0] for name in COUNTS] == [first[0.7, name][0] for name in COUNTS]
    # at .9 the first seed meets the moved dictionary from both halves, the second is it in one of them
    assert [first[0.9, name][0].item() for name in COUNTS] == [7, 1, 1, 5, 4]
    assert [second[0.9, name][0].item() for name in COUNTS] == [7.5, 1, 1, 5.5, 4.5]


def zipf_batch(tokens: int, seed: int, vocabulary: int) -> Batch:
    """One latent, a dimension: with the tokens of rank above 1,000, 1 less a tenth of noise,
    as rare tokens' would be.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens_N = torch.multinomial(1 / torch.arange(1.0, vocabulary + 1), tokens, True, generator=generator)
    x_ND = (tokens_N > 1000)[:, None] * (1 + 0.1 * torch.randn(tokens, 1, generator=generator))
    nothing_N = torch.zeros(tokens, dtype=torch.long)
    return Batch(tokens_N, nothing_N, torch.arange(tokens) // 100, nothing_N, {"it": x_ND})


def test_a_latent_of_rare_tokens_is_the_tokens_once_enough_text_is_read():
    same, test = rays(torch.eye(1)), zipf_batch(10_000, 0, 20_000)
    held = HeldOut(test, torch.ones(1, 100).double())
    beyond = {}
    for batches in (1, 40):
        seen = [zipf_batch(10_000, 1 + number, 20_000) for number in range(batches)]
        found = reproduced({"it": [[same, same]] * 2}, seen, held, taus=(0.9,), explained=0.7)["it"]
        beyond[batches] = found[0][0.9, "beyond_tokens"].item()
    assert beyond == {1: 1, 40: 0}


def test_what_cannot_be_compared_is_refused():
    held = HeldOut(planted_readings(1), torch.ones(1, 40).double())
    one = rays(torch.eye(8))
    for sides, words in (([[one], [one]], "1 and 1"), ([[one, one], [one]], "2 and 1"), ([[one, one]], "2 dict")):
        with pytest.raises(ValueError, match=words):
            reproduced({"it": sides}, [planted_readings(0)], held, taus=(0.9,), explained=0.7)


def test_a_null_beside_nothing_real_is_no_number():
    value, draws_B = ratio(torch.tensor([0.0, 0, 3]), torch.tensor([0.0, 2, 0]))
    assert np.isnan(value)
    assert draws_B.tolist() == [0, 3]
    assert ratio(torch.tensor([1.0, 0]), torch.tensor([4.0, 0]))[0] == 0.25
    assert ratio(torch.tensor([1.0, 0]), torch.tensor([4.0, 0]))[1].tolist() == [1]


@pytest.mark.slow
def test_planted_rays_are_found_again_and_a_gaussians_are_not(tmp_path):
    world = World(32, 24, 1.5, firing="uniform", seed=1)
    real = [world.stream(f"half {half}", 256 * 150, 256) for half in "AB"]
    seen = world.stream("seen", 512 * 8, 512)
    known = sample_sites(world.stream("sample", 512 * 40, 512), 1)
    null = [Surrogate("gaussian", known, stream, seed=seed) for seed, stream in enumerate(real)]
    test = Batch.join(world.stream("test", 512 * 8, 512))
    weights_BG = torch.ones(1, len(test.documents_N.unique())).double()
    found = {}
    for name, streams, here in (("real", real, test), ("null", null, null[0].match(test))):
        sides = []
        for half, stream in zip("AB", streams, strict=True):
            (tmp_path / f"{name}_{half}").mkdir()
            arms: dict[str, Learned] = {f"s{seed}": TopK(24, 64, 2, seed=seed, lr=1e-2) for seed in range(2)}
            train(stream, {world.site: arms}, tmp_path / f"{name}_{half}")
            sides.append([arm.eval() for arm in arms.values()])
        both = {world.site.key: sides}
        by_seed = reproduced(both, seen, HeldOut(here, weights_BG), taus=(0.7, 0.9), explained=0.7)[world.site.key]
        found[name] = torch.cat([torch.stack([c[tau, "beyond_tokens"] for tau in (0.7, 0.9)], 1) for c in by_seed])
    assert (found["real"] >= torch.tensor([30, 27])).all()  # of 32, after 150 steps
    assert found["real"].max() <= 32  # none is counted twice
    assert found["null"].max() <= 1


def test_what_cannot_be_judged_is_refused_before_anything_is_trained(model, packed, tmp_path):
    setting = Setting(Source(model, packed), tuple(resolve("blocks.1.hook_resid_post", model)), (0, 1), tmp_path)
    sizes = {"widths": [8], "k": 2, "tokens": 640, "null_tokens": 640, "means_tokens": 640, "test_tokens": 640}
    for nulls, words in ((["gausian"], "nulls=gausian; some of gaussian"), ([], "nulls=none; some of gaussian")):
        with pytest.raises(ValueError, match=words):
            reproducible_directions(setting, **sizes, nulls=nulls)
    for name, words in (("widths", r"^widths=\[\]: give"), ("taus", r"^study.run.taus=\[\]: give")):
        with pytest.raises(ValueError, match=words):
            reproducible_directions(setting, **{**sizes, name: []})
    assert not (setting.folder / "arms").exists()
    with pytest.raises(ValueError, match=r"seeds=\[1\]: .* at least two"):
        reproducible_directions(replace(setting, seeds=(1,)), **sizes)


def run(*arguments: str, out: Path) -> tuple[pd.DataFrame, dict]:
    main(["study", "reproducible_directions", *arguments, f"out={out}"])
    return pd.read_csv(out / "table.csv"), json.loads((out / "verdict.json").read_text())


@pytest.mark.slow
def test_the_study(tiny_gpt2, text_file, tmp_path):
    sizes = "seeds:[0,1,2],widths:[32,64],k:4,lr:0.01,tokens:3200,null_tokens:1066,means_tokens:1024,test_tokens:1024"
    options = [
        "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files", f"text.files={text_file}",
        "stream.batch_size=64", "stream.round_tokens=512", "threads=1", "study.run.taus=[.1,.2]",
        f"study.sizes.demo={{{sizes}}}",
    ]  # fmt: skip
    table, verdict = run(*options, "study.run.nulls=[token_mixture,permuted_weights]", out=tmp_path / "a")
    again, _ = run(*options, "study.run.nulls=[token_mixture]", out=tmp_path / "b")
    pd.testing.assert_frame_equal(table.query("stream != 'permuted_weights'").reset_index(drop=True), again)
    streams, site = ["real", "token_mixture", "permuted_weights"], "blocks.1.hook_resid_post"
    predictions = verdict["predictions"]
    assert list(table["site"].unique()) == [site]
    of = table.query("seed.isna()").set_index(["budget", "stream", "latents", "tau", "metric"])["value"].to_dict()
    for budget, stream in ((1066, "real"), (3200, "real"), (1066, "token_mixture"), (1066, "permuted_weights")):
        there = [w for w in (32, 64) if (budget, stream, w, 0.2, "all") in of]
        assert there == ([32, 64] if stream == "real" else [64])
        at = {(tau, name): of[budget, stream, 64, tau, name] for tau in (0.1, 0.2) for name in COUNTS}
        assert 0 < at[0.2, "all"] <= at[0.1, "all"] <= 64
        assert at[0.2, "beyond_tokens_and_position"] <= at[0.2, "beyond_tokens"] <= at[0.2, "all"]
    assert not any(budget == 3200 and stream != "real" for budget, stream, *_ in of)  # nulls at fewer tokens alone
    for name, count in (("beyond", "beyond_tokens"), ("beyond_positions", "beyond_tokens_and_position")):
        both = {str(budget): of[budget, "real", 64, 0.2, count] / 32 for budget in (1066, 3200)}
        assert predictions[name]["observed"] == pytest.approx(both["3200"])
        assert predictions[name].get("at", both) == pytest.approx(both)
    by_seed = table.query("budget == 1066 and latents == 64 and tau == .2")
    for name, count in (("nulls", "beyond_tokens"), ("nulls_beyond_positions", "beyond_tokens_and_position")):
        one = by_seed[by_seed["metric"] == count].pivot_table(index="seed", columns="stream", values="value")
        worst = (one[streams[1:]].max(axis=1) / one["real"]).mean()
        assert predictions[name]["observed"] == pytest.approx(worst)
        assert predictions[name]["converged"] is None  # observed at one budget
        assert list(predictions[name]["at"]) == ["1066"]


def test_each_draw_of_a_null_model_is_compared_with_itself(model, packed, tmp_path):
    sites = tuple(resolve("blocks.1.hook_resid_post", model))
    setting = Setting(Source(model, packed, batch_size=64), sites, (5, 7, 9), tmp_path)
    streams = Streams(setting.source, setting, 640, 640, 640)
    assert groups("real", setting.seeds) == [Group("real", (5, 7, 9), (5, 7, 9))]
    drawn = groups("random_blocks", setting.seeds)
    assert [(one.draw, one.seeds, one.counted) for one in drawn] == [
        (5, (5, 7), (5,)), (7, (7, 9), (7,)), (9, (9, 5), (9,))
    ]  # fmt: skip
    models = [streams.half(one, half, seed).model.fingerprint for one in drawn for half in (0, 1) for seed in one.seeds]
    assert [models.count(one) for one in models] == [4] * 12
    assert len(set(models)) == 3
    (gaussian,) = groups("gaussian", setting.seeds)
    trained_on = [streams.half(gaussian, half, seed) for half in (0, 1) for seed in gaussian.seeds]
    key = setting.sites[0].key
    firsts = [stream[0].activations[key] for stream in (*trained_on, streams.seen(gaussian))]
    assert len({one.sum().item() for one in firsts}) == 7  # a draw for each seed and half, another for means by token
    names = [one.folder(half, seed) for one in (*drawn, gaussian) for half in (0, 1) for seed in one.seeds]
    assert len(names) == 18
    assert (
        len(set(names)) == 3 * 2 + 6
    )  # a pass over each half of each draw of a model, and of each draw of a surrogate
    assert drawn[1].seeds_in("random_blocks_B_draw7", 1) == [7, 9]
    assert gaussian.seeds_in("gaussian_A_seed5", 0) == [5]
