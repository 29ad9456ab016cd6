"""rays_vs_directions: its statistics in closed form and on planted worlds, its null,
and the study from the command line.
"""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from rayscope.cli.command_line import main
from rayscope.dictionaries import AbsTopK, Codes, TopK, code_length, load
from rayscope.evaluation.reconstruction import reconstruct
from rayscope.model.sites import Site, resolve
from rayscope.streams.planted import World
from rayscope.streams.sign_flip import SignFlip
from rayscope.streams.source import Source
from rayscope.streams.stream import Batch
from rayscope.studies.arms import Arm, Training, read_arms
from rayscope.studies.rays_vs_directions.polarity import PARTS, Ends, Polarity
from rayscope.studies.rays_vs_directions.records import DIRECTIONS, RAYS
from rayscope.studies.rays_vs_directions.study import makers, means_of, rays_vs_directions
from rayscope.studies.setting import Setting

pytestmark = pytest.mark.usefixtures("one_thread")


def learn(folder: Path, stream, arms: dict, calibration=()) -> dict:
    Training(stream, arms, calibration).train(folder)
    return read_arms(folder, stream.sites, arms)


@pytest.mark.parametrize(("m", "k"), [(1024, 8), (1024, 32), (12_288, 16), (12_288, 128)])
def test_rays_and_half_as_many_directions_cost_the_same_bits(m, k):
    make = makers(m, rank=24)
    rays, directions = (make[name](width=4, k=k) for name in (RAYS, DIRECTIONS))
    assert (type(rays), type(directions)) == (TopK, AbsTopK)
    ratio = rays.bits() / directions.bits()
    exact = math.log2(math.comb(2 * m, k)) + 8 * k, math.log2(math.comb(m, k)) + 9 * k
    assert ratio == pytest.approx(exact[0] / exact[1], rel=1e-9)
    assert 1 <= ratio <= 1.003


def of(z_NL: torch.Tensor, documents_N: torch.Tensor | None = None) -> Polarity:
    polarity = Polarity.of(z_NL.shape[1])
    polarity.update(Codes.of_dense(z_NL), torch.arange(len(z_NL)) if documents_N is None else documents_N)
    return polarity


def test_polarity_by_hand():
    z_NL = torch.tensor([[3.0, -2.0, 0, 0.1], [4.0, 1.0, 0, -0.1], [0, -1.0, 0, 0], [0, 0, 0, 0]])
    polarity = of(z_NL)
    torch.testing.assert_close(polarity.polarity_L.nan_to_num(-1), torch.tensor([0, 1 / 6, -1, 0.5]).double())
    assert polarity.density_L.tolist() == [0.5, 0.75, 0, 0.5]
    assert polarity.mean_polarity().item() == pytest.approx((0 + 1 + 0.01) / (25 + 6 + 0.02))
    # 25 of 31.02 do not reach nine tenths, 31 do: the two first carry, the weak even one does not
    assert polarity.bipolar_share().item() == 0
    polarity.update(Codes.of_dense(torch.tensor([[0, 1.0, 0, 0]])), torch.tensor([9]))
    assert polarity.bipolar_L.tolist() == [False, True, False, False]  # 2 of 7 is a quarter
    assert polarity.bipolar_share().item() == 0.5


def test_a_share_is_resampled_by_documents():
    z_NL = torch.tensor([[1.0, 0], [-1.0, 0], [0, 1.0], [0, 1.0]])
    polarity = of(z_NL, torch.tensor([0, 1, 2, PARTS + 2]))
    weights_BP = torch.zeros(3, PARTS, dtype=torch.float64)
    weights_BP[0, :3] = 1  # all
    weights_BP[1, [0, 2]] = 1  # without the negative vector
    weights_BP[2, :2] = 1  # the first latent alone
    assert polarity.bipolar_share(weights_BP).tolist() == [0.5, 0, 1]
    assert polarity.bipolar_share().item() == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_bipolar_share_of_a_trained_dictionary_is_what_is_planted(share, tmp_path):
    """More features than latents, frequencies as in text, latents that die and latents that fill up the k."""
    found = []
    for seed in (0, 1):
        world = World(128, 32, 3.0, bipolar=share, seed=seed)
        arm = Arm("signed", 4, seed)
        arms = {arm: partial(AbsTopK, latents=96, k=4, lr=1e-2, seed=seed)}
        signed = learn(tmp_path / str(seed), world.stream("train", 100_000), arms)[world.site][arm]
        learned, true, test = Polarity.of(96), Polarity.of(128), world.stream("test", 16_384)
        for number, batch in enumerate(test):
            learned.update(signed.encode_sparse(batch.activations["planted"]), batch.documents_N)
            true.update(test.codes(number), batch.documents_N)
        found.append((learned.bipolar_share().item(), true.bipolar_share().item()))
    mine, truth = torch.tensor(found).mean(0).tolist()
    assert mine == pytest.approx(share, abs=0.1)
    assert mine == pytest.approx(truth, abs=0.1)


def test_an_arm_whose_dictionary_is_gone_is_not_believed(tmp_path):
    world = World(40, 16, 3.0, seed=0)
    one, two = Arm("one", 2, 0), Arm("two", 2, 0)
    arms = {arm: partial(TopK, latents=24, k=2, seed=0) for arm in (one, two)}

    def trained() -> torch.Tensor:
        return learn(tmp_path, world.stream("train", 2048), arms)[world.site][two].directions

    before = trained()
    record, place = tmp_path / "trained.json", tmp_path / "dictionaries" / world.site.key / two.name
    whole = record.read_text()
    for damage in (lambda: shutil.rmtree(place), lambda: record.write_text(whole[:-9])):
        damage()
        with pytest.raises(ValueError, match="put it back, or train again, with overwrite=true or another out="):
            trained()
    record.unlink()
    assert torch.equal(trained(), before)
    assert record.read_text() == whole


def as_rays(codes: Codes) -> Codes:
    """Each direction as two rays: ray l for its positive end, ray l + L for its negative."""
    indices_M = codes.indices_M + codes.latents * (codes.values_M < 0)
    return Codes(indices_M, codes.values_M.abs(), codes.offsets, 2 * codes.latents)


def test_ends_that_share_a_parent_share_their_context():
    """A child fires with its parent, each with either sign:
    c is about 1/2 at both rays of the parent and 1 at the child's
    own ray of that end, so the cosine is near (1/2) / (1/2 + 1) = 1/3. A root has no context."""
    world = World(40, 16, 3.0, firing="uniform", bipolar=1.0, hierarchy=0.5, seed=1)
    codes = world.codes(60_000, torch.Generator().manual_seed(0))
    found = {}
    for kind, chosen_F in (("child", world.parents_F >= 0), ("root", world.parents_F < 0)):
        ends = Ends(chosen_F.nonzero()[:, 0], 40, 80)
        for start in range(0, 60_000, 20_000):
            these = slice(codes.offsets[start], codes.offsets[start + 20_000])
            offsets = codes.offsets[start : start + 20_001] - codes.offsets[start]
            part = Codes(codes.indices_M[these], codes.values_M[these], offsets, 40)
            ends.update(part, as_rays(part))
        found[kind] = ends.shared()
    assert 0.25 < found["child"][0] < 0.35
    assert abs(found["child"][1]) < 0.1
    assert abs(found["root"][0] - found["root"][1]) < 0.1


def test_two_unrelated_rays_on_one_row_share_nothing():
    """Latent l along f - g, where f and g never meet: what is left of both without the row is (f + g) / 2."""
    rays_LD = torch.eye(8)
    on_N = torch.arange(8).repeat(50)
    x_ND = rays_LD[on_N]
    rows_LD = F.normalize(rays_LD[:4] - rays_LD[4:])
    codes = Codes.of_dense(x_ND @ rows_LD.T)
    left_ND = x_ND - codes.dense() @ rows_LD
    assert torch.allclose(left_ND[:4], left_ND[4:8])  # the geometry alone would call them opposites in one context
    ends = Ends(torch.arange(4), 4, 8)
    ends.update(codes, Codes.of_dense(x_ND))
    # c(e) is 1 - 1/8 at the own ray and -1/8 elsewhere: every two ends have cosine -1/7
    assert ends.shared() == (pytest.approx(-1 / 7), pytest.approx(-1 / 7))
    assert all(math.isnan(x) for x in Ends(torch.tensor([2]), 4, 8).shared())


def test_sign_flip_mirrors_half_of_the_vectors_in_the_mean(model, packed):
    sites = [Site("blocks.1.hook_resid_post", 32, 1), Site("blocks.1.mlp.hook_post", 128, 1)]
    real = Source(model, packed, batch_size=64, round_tokens=512).stream("train", sites, 1024)
    means = {site.key: real[0].activations[site.key].mean(0) for site in sites}
    flipped = SignFlip(real, means, seed=3)
    assert (len(flipped), flipped.batch_size, flipped.sites) == (16, 64, tuple(sites))
    signs = []
    for number in (0, 5):
        x, y = real[number], flipped[number]
        assert all(torch.equal(a, b) for a, b in zip(x.labels, y.labels, strict=True))
        each = [
            ((y.activations[s.key] - means[s.key]) * (x.activations[s.key] - means[s.key])).sum(1).sign() for s in sites
        ]
        assert torch.equal(*each)  # one sign at both sites
        for site in sites:
            mirrored_ND = means[site.key] + each[0][:, None] * (x.activations[site.key] - means[site.key])
            torch.testing.assert_close(y.activations[site.key], mirrored_ND)
        signs.append(each[0])
    assert not torch.equal(*signs)
    assert 32 < (torch.cat(signs) < 0).sum() < 96
    again, other = SignFlip(real, means, seed=3), SignFlip(real, means, seed=4)
    key = sites[0].key
    assert torch.equal(again[5].activations[key], flipped[5].activations[key])
    assert not torch.equal(other[5].activations[key], flipped[5].activations[key])
    with pytest.raises(ValueError, match=r"means: that of blocks.1.mlp.hook_post is not given"):
        SignFlip(real, {key: means[key]})


def test_what_cannot_be_measured_is_refused_before_anything_is_trained(model, packed, tmp_path):
    setting = Setting(Source(model, packed), (Site("blocks.1.hook_resid_post", 32, 1),), (0,), tmp_path)
    sizes = dict.fromkeys(("tokens", "fit_tokens", "test_tokens", "splice_tokens", "validation_tokens"), 512)
    options = {**sizes, "latents": 8, "rank": 2, "lr": None, "world": World, "planted": {}}
    for ks, null_k, bipolar, words in (
        ([], 2, [0.5], r"^ks=\[\]: give at least one, such as \[8, 32\]$"),
        ([2], 2, [], r"^study.run.bipolar=\[\]: give at least one, such as \[0, 0.5, 1\]$"),
        ([2, 4], 3, [0.5], r"^null_k=3 is not among ks=\[2, 4\]; choose one of those$"),
    ):
        with pytest.raises(ValueError, match=words):
            rays_vs_directions(setting, ks=ks, null_k=null_k, bipolar=bipolar, **options)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def asked(tiny_gpt2, text_file) -> list[str]:
    size = "study.sizes.demo"
    return [
        "study", "rays_vs_directions", "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files",
        f"text.files={text_file}", "stream.batch_size=64", "stream.round_tokens=512", "threads=1",
        f"{size}.latents=16", f"{size}.ks=[2,4]", f"{size}.null_k=2", f"{size}.tokens=512", f"{size}.test_tokens=512",
        f"{size}.splice_tokens=256", f"{size}.validation_tokens=256", "study.run.rank=3", "study.run.world.features=24",
        f"{size}.planted.latents=16", f"{size}.planted.tokens=3072", f"{size}.planted.test_tokens=1024",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def ran(asked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rays_vs_directions")
    main([*asked, f"out={folder}"])
    return folder


@pytest.mark.slow
def test_the_study(asked, ran, tmp_path):
    main([*asked, f"out={tmp_path}"])
    table, again = (pd.read_csv(folder / "table.csv") for folder in (ran, tmp_path))
    pd.testing.assert_frame_equal(table, again)
    verdict = json.loads((ran / "verdict.json").read_text())
    assert set(table["budget"]) == {170, 512}
    table = table[table["budget"] == 512]
    assert set(table["trained_tokens"].dropna()) == {512, 3072}
    real = table[(table["stream"] == "real") & (table["position0"] == "excluded")]
    by_omp = real[real["coder"] == "omp"].groupby(["site", "arm", "k", "seed"])["metric"].agg(set)
    assert len(by_omp) == 2 * 4 * 2 * 2  # A, B, C and D
    assert all({"fvu", "dce", "kl", "bits_entropy", "dead"} == found for found in by_omp)
    fvu = real[real["metric"] == "fvu"].groupby(["arm", "coder"])["value"].mean().unstack().dropna()
    assert (fvu["omp"] < fvu["own"]).all()
    real = real[real["coder"] == "own"]
    every = real.groupby(["site", "arm", "k", "seed"])["metric"].agg(set)
    assert len(every) == 2 * 6 * 2 * 2
    assert all({"fvu", "dce", "kl", "bits_entropy", "dead", "antipodal_share"} <= found for found in every)
    assert real[real["arm"] == "E_tied_2m"].query("metric == 'antipodal_share'")["value"].eq(1).all()
    signed = real[real["metric"] == "bipolar_share"]
    assert set(signed["arm"]) == {DIRECTIONS, "D_directions_2m"}
    # what is observed is what the table holds
    dce = real[real["metric"] == "dce"].pivot_table(index=["site", "k", "seed"], columns="arm", values="value")
    for kind, hook in (("residual", "hook_resid_post"), ("mlp", "mlp.hook_post")):
        here = dce[[hook in site for site, _, _ in dce.index]]
        observed = verdict["predictions"][f"dce_ratio_{kind}"]["observed"]
        if observed is None:  # this model predicts nothing: a splice may lower its loss
            assert here[[RAYS, DIRECTIONS]].min(axis=None) <= 0
        else:
            assert observed == pytest.approx(math.exp((here[DIRECTIONS] / here[RAYS]).map(math.log).mean()), rel=1e-4)
    fvu = table[(table["stream"] == "sign_flip") & (table["metric"] == "fvu")].pivot_table(
        index=["site", "seed"], columns="arm", values="value"
    )
    pays = math.exp((fvu[RAYS] / fvu[DIRECTIONS]).map(math.log).mean())
    assert verdict["predictions"]["flipped_fvu_ratio"]["observed"] == pytest.approx(pays, rel=1e-5)
    worst = signed[signed["arm"] == DIRECTIONS].groupby(["seed", "site"])["value"].mean().groupby("seed").max().mean()
    assert verdict["predictions"]["bipolar_share"]["observed"] == pytest.approx(worst, rel=1e-5)
    bits = real.groupby(["arm", "k"])["bits"].first()
    assert bits["F_rays_2m_and_dense", 4] == pytest.approx(code_length.bits(35, 4, False, dense=3), rel=1e-6)


@pytest.mark.slow
def test_the_null_is_trained_and_measured_on_flipped_streams(ran, model, packed, tmp_path):
    """Bit by bit what is trained here on the same stream flipped, and the numbers are those of flipped test vectors."""
    table = pd.read_csv(ran / "table.csv").query("stream == 'sign_flip' and budget == 512")
    source = Source(model, packed, batch_size=64, round_tokens=512)
    sites = resolve(list(table["site"].unique()), model)
    arms = {method: Arm(method, 2, 0) for method in (RAYS, DIRECTIONS)}
    means = means_of(source.stream("train", sites, 512, "fp32"))
    train, validation, test = (
        SignFlip(source.stream(split, sites, tokens), means)
        for split, tokens in (("train", 512), ("validation", 256), ("test", 512))
    )
    made = {
        arms[RAYS]: partial(TopK, latents=32, k=2, initial_rows="rays_vs_directions"),
        arms[DIRECTIONS]: partial(AbsTopK, latents=16, k=2, initial_rows="rays_vs_directions"),
    }
    here, held_out = learn(tmp_path, train, made, validation), Batch.join(test)
    meters = reconstruct(here, held_out, Batch.join(validation))
    documents = len(held_out.documents_N.unique())
    value = table.query("seed == 0").set_index(["site", "arm", "metric"])["value"]
    for site in sites:
        for method, arm in arms.items():
            mine = here[site][arm]
            theirs = load(ran / "budgets/512/arms/sign_flip_seed0/dictionaries" / site.key / arm.name).state_dict()
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.state_dict().items())
            fvu = meters[site][arm].statistics()["fvu"](torch.ones(1, documents, dtype=torch.float64)).item()
            assert value[site.hook, method, "fvu"] == pytest.approx(fvu, rel=1e-5)
        polarity = Polarity.of(16)
        polarity.update(
            here[site][arms[DIRECTIONS]].encode_sparse(held_out.activations[site.key]), held_out.documents_N
        )
        assert value[site.hook, DIRECTIONS, "bipolar_share"] == pytest.approx(polarity.bipolar_share().item(), rel=1e-5)
        assert value[site.hook, DIRECTIONS, "polarity"] == pytest.approx(polarity.mean_polarity().item(), rel=1e-5)
