"""The KL stage: its gradients against dense autograd, what it changes, a stopped run, and the command."""

import argparse
import copy
import inspect
import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from rayscope.cli.command_line import main
from rayscope.dictionaries import AbsTopK, BatchTopK, TopK, find, load
from rayscope.model import load as load_model
from rayscope.model.sites import resolve
from rayscope.model.splicing import CleanPass
from rayscope.seeding import generator_of
from rayscope.stopping import Stopped
from rayscope.streams.harvest import ActivationStream
from rayscope.streams.positions import keep_first
from rayscope.text.packing import Rows
from rayscope.training import finetuning
from rayscope.training.checkpoint import remove_checkpoints
from rayscope.training.finetuning import finetune, kl_pass
from rayscope.training.last_rows import LastRows
from rayscope.training.train import prepare
from toys import latest

HOOK = "blocks.1.hook_resid_post"


@pytest.mark.parametrize("kind", [TopK, AbsTopK])
def test_gradients_are_those_of_a_dense_reference(model, packed, kind):
    """float64, the whole forward written out with autograd from the parameters to KL, the ratio held fixed."""
    double = copy.deepcopy(model)
    double.network.double()
    (site,) = resolve(HOOK, double)
    tokens_RC = torch.from_numpy(packed.train.tokens[:3].astype("int64"))
    tokens_RC[1, 9] = 0  # a separator, which keeps its activation as position 0 does
    kept_RC = (tokens_RC == 0) | (torch.arange(32) == 0)
    clean = CleanPass.run(double, tokens_RC, [site])
    x_RCD = clean.activations[site.key]
    dictionary = kind(site.width, 40, 3).double()
    dictionary.prepare(x_RCD.flatten(0, 1), 10**6)
    passed = kl_pass(clean, site, dictionary, weight=0.7)
    passed.loss.backward()

    W_enc, b_enc, W_dec, b_dec = leaves = [
        p.detach().clone().requires_grad_()
        for p in (dictionary.W_enc_LD, dictionary.b_enc_L, dictionary.W_dec_LD, dictionary.b_dec_D)
    ]
    s_ND = x_RCD[~kept_RC] * dictionary.units.inner.scale
    pre_NL = (s_ND - b_dec) @ W_enc.T + b_enc
    chosen = (pre_NL.abs() if dictionary.signed else pre_NL).topk(3).indices
    z_NL = (pre_NL if dictionary.signed else pre_NL.relu()) * torch.zeros_like(pre_NL).scatter(1, chosen, 1)
    hat_ND = z_NL @ W_dec + b_dec
    fvu = (s_ND - hat_ND).square().sum() / (s_ND - s_ND.mean(0)).square().sum()
    x_hat = torch.zeros_like(x_RCD).masked_scatter(~kept_RC[..., None], hat_ND / dictionary.units.inner.scale)
    x_hat = torch.where(kept_RC[..., None], x_RCD, x_hat)
    block = double.network.transformer.h[2]
    logits = double.unembed(block(x_hat)[0] if isinstance(block(x_hat), tuple) else block(x_hat))[:, :-1]
    p = clean.logp_RCV.exp()
    kl = (p * (clean.logp_RCV - logits.log_softmax(-1))).sum(-1).mean()
    (fvu + 0.7 * (fvu / kl).detach() * kl).backward()
    assert passed.losses["kl"].item() == pytest.approx(
        0.7 * fvu.item(), rel=1e-9
    )  # as much as reconstruction, times the weight
    assert passed.metrics["kl"].item() == pytest.approx(kl.item(), rel=1e-9)
    ours = (dictionary.W_enc_LD, dictionary.b_enc_L, dictionary.W_dec_LD, dictionary.b_dec_D)
    for mine, dense in zip(ours, leaves, strict=True):
        assert dense.grad is not None
        assert dense.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, dense.grad, rtol=1e-7, atol=1e-12)
    assert all(p.grad is None for p in double.network.parameters())


def poor(model, packed, **options):
    """{site: {name: dictionary}}: as they are before training."""
    (site,) = resolve(HOOK, model)
    made = {"topk": TopK(site.width, 64, 4, lr=3e-3), "batchtopk": BatchTopK(site.width, 64, 4, lr=3e-3)}
    stream = ActivationStream(model, packed.train, [site], tokens=512, batch_size=256, round_tokens=512)
    prepare(stream, {site: made}, 10**6)
    return site, made


def rows_of(packed, batches: int, seed: int = 0) -> LastRows:
    return LastRows(packed.train, tokens=batches * 8 * 32 + 5, rows_per_batch=8, seed=seed)


@pytest.mark.slow
def test_kl_falls_and_each_dictionary_is_tuned_as_if_alone(model, packed, tmp_path):
    site, made = poor(model, packed)
    alone = copy.deepcopy(made["topk"])
    held_out = CleanPass.run(model, torch.from_numpy(packed.test.tokens[:12].astype("int64")), [site])

    @torch.no_grad()
    def divergence(dictionary) -> float:
        x_RCD = held_out.activations[site.key]
        x_hat_RCD = keep_first(x_RCD, dictionary(x_RCD.flatten(0, 1)).view_as(x_RCD))
        return held_out.spliced(site, x_hat_RCD)[1].mean().item()

    before = {name: divergence(dictionary) for name, dictionary in made.items()}
    calibration = ActivationStream(model, packed.validation, [site], tokens=512, batch_size=256, round_tokens=512)
    finetune(model, rows_of(packed, 40), {site: made}, tmp_path, log_every=1, calibration=calibration)
    log = pd.read_csv(tmp_path / "training.csv")
    for name, dictionary in made.items():
        kl = log[f"train/kl/{HOOK}/{name}"]
        assert kl.tail(8).mean() < 0.8 * kl.head(4).mean()
        assert divergence(dictionary) < 0.8 * before[name]
        torch.testing.assert_close(dictionary.directions.norm(dim=1), torch.ones(64))
    x_ND = torch.cat([batch.activations[site.key] for batch in calibration])
    assert len(made["batchtopk"].encode_sparse(x_ND).values_M) == 4 * len(x_ND)  # the threshold was set again
    (tmp_path / "alone").mkdir()
    finetune(model, rows_of(packed, 40), {site: {"topk": alone}}, tmp_path / "alone")
    for mine, with_others in zip(alone.parameters(), made["topk"].parameters(), strict=True):
        assert torch.equal(mine, with_others)


@pytest.mark.slow
def test_dce_falls_on_held_out_rows(tmp_path, one_thread):
    """Of the model that ships, on text of which it knows something: that of a random one may fall or rise by chance."""
    model = load_model("tiny")
    ids = model.tokenizer(inspect.getsource(argparse)).input_ids
    tokens_RC = np.array(ids[: len(ids) // 32 * 32]).reshape(-1, 32)
    rows = Rows(tokens_RC[20:], np.zeros_like(tokens_RC[20:]), np.bincount(tokens_RC[20:].ravel(), minlength=8192))
    (site,) = resolve("blocks.2.hook_resid_post", model)
    held_out = CleanPass.run(model, torch.from_numpy(tokens_RC[:20]), [site])
    x_RCD = held_out.activations[site.key]
    dictionary = TopK(site.width, 512, 8, lr=3e-3)
    stream = ActivationStream(model, rows, [site], tokens=512, batch_size=256, round_tokens=512)
    prepare(stream, {site: {"topk": dictionary}}, 10**6)

    @torch.no_grad()
    def dce() -> float:
        x_hat_RCD = keep_first(x_RCD, dictionary(x_RCD.flatten(0, 1)).view_as(x_RCD))
        return (held_out.spliced(site, x_hat_RCD)[0] - held_out.loss_RC).mean().item()

    before = dce()
    finetune(model, LastRows(rows, tokens=16 * 256, rows_per_batch=8), {site: {"topk": dictionary}}, tmp_path)
    assert before > 0.5
    assert dce() < 0.7 * before


@pytest.mark.slow
def test_the_weight_moves_the_balance(model, packed, tmp_path):
    """More weight on KL: less KL at the end, and not less reconstruction error."""
    found = {}
    for weight in (0.0, 4.0):
        site, made = poor(model, packed)
        (tmp_path / str(weight)).mkdir()
        finetune(model, rows_of(packed, 30), {site: made}, tmp_path / str(weight), weight=weight, log_every=1)
        found[weight] = pd.read_csv(tmp_path / str(weight) / "training.csv").tail(8).mean()
    assert found[4.0][f"train/kl/{HOOK}/topk"] < 0.95 * found[0.0][f"train/kl/{HOOK}/topk"]
    assert found[4.0][f"train/fvu/{HOOK}/topk"] > found[0.0][f"train/fvu/{HOOK}/topk"]


def test_rows_come_from_the_end_of_the_order_of_training(packed):
    size = len(packed.train)
    order = torch.randperm(size, generator=generator_of("pass", 3, 0)).numpy()
    rows = LastRows(packed.train, tokens=2 * size * 32, rows_per_batch=7, seed=3)
    assert (rows[1].numpy() == packed.train.tokens[order[::-1][7:14]]).all()
    assert len(rows) == 2 * size // 7
    number, within = divmod(size, 7)  # the batch in which the next pass begins
    again = torch.randperm(size, generator=generator_of("pass", 3, 1)).numpy()[::-1]
    assert (rows[number].numpy()[within:] == packed.train.tokens[again[: 7 - within]]).all()
    with pytest.raises(ValueError, match=r"finetuning.tokens=100 is less than one batch of 4 rows of 32"):
        LastRows(packed.train, tokens=100, rows_per_batch=4)
    with pytest.raises(ValueError, match=r"finetuning.rows=0"):
        LastRows(packed.train, tokens=100, rows_per_batch=0)


@pytest.fixture(scope="module")
def command(tiny_gpt2, text_file, tmp_path_factory) -> list[str]:
    common = [
        "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files", f"text.files={text_file}",
        f"sites.patterns=[{HOOK},blocks.1.mlp.hook_post]", "stream.batch_size=64", "stream.round_tokens=512",
        "threads=1", "training.calibration_tokens=256", "training.log_every=2",
    ]  # fmt: skip
    out = tmp_path_factory.mktemp("runs") / "before"
    before = torch.get_num_threads()
    main(["train", *common, "dictionaries=[topk,batchtopk]", "latents=64", "k=4", "tokens=640", f"out={out}"])
    torch.set_num_threads(before)
    tuned = ["stage=kl", f"finetuning.folder={out}/dictionaries", "finetuning.tokens=1536", "finetuning.rows=4"]
    return ["train", *common, *tuned]


def weights(out: Path) -> dict[str, bytes]:
    return {name: (path / "weights.safetensors").read_bytes() for name, path in find(out).items()}


@pytest.mark.slow
def test_the_command_and_a_stopped_run(command, tmp_path, monkeypatch, capsys, one_thread):
    main([*command, f"out={tmp_path / 'whole'}"])
    given = Path(next(arg for arg in command if arg.startswith("finetuning.folder")).partition("=")[2])
    whole = weights(tmp_path / "whole/dictionaries")
    assert set(whole) == set(find(given))
    assert len(whole) == 4
    assert all(whole[name] != before for name, before in weights(given).items())
    tuned = load(find(tmp_path / "whole/dictionaries")[next(iter(whole))])
    assert tuned.provenance["stage"] == "kl"
    assert tuned.provenance["tokens"] == 640 + 1536
    tuning = tuned.provenance["finetuning"]
    assert {key: tuning[key] for key in ("tokens", "kl", "rows")} == {"tokens": 1536, "kl": 1.0, "rows": 4}
    assert tuning["lr"] > 0
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        *("config.yaml", "environment.json", "finished.json", "training.csv", "dictionaries", "trained.json")
    }
    trained = json.loads((tmp_path / "whole/trained.json").read_text())
    assert sorted(trained.pop("sha256")) == sorted(whole)
    assert trained == {"tokens": 1536, "dictionaries": sorted(whole), "diverged": []}

    seen = []

    class Killed(BaseException):
        pass

    inner = finetuning.kl_pass

    def dies(*args, **kwargs):
        seen.append(1)
        if len(seen) == 4 * 8 + 2:  # in the ninth of twelve steps, two after the last checkpoint
            raise Killed
        return inner(*args, **kwargs)

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "kl_pass", dies)
        with pytest.raises(Killed):
            main([*command, "training.checkpoint_steps=3", f"out={out}"])
    capsys.readouterr()
    main([*command, "training.checkpoint_steps=3", f"out={out}"])
    assert "resuming at 768 of 1,536 tokens" in capsys.readouterr().err
    assert weights(out / "dictionaries") == whole
    assert (out / "training.csv").read_text() == (tmp_path / "whole/training.csv").read_text()


@pytest.mark.slow
def test_a_stop_saves_and_the_same_command_resumes_there(command, tmp_path, monkeypatch, capsys, one_thread):
    main([*command, f"out={tmp_path / 'whole'}"])
    out, step, seen, inner = tmp_path / "stopped", 5, [], finetuning.Tuner.step

    def stops(self, tokens_RC):
        seen.append(self.done)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        inner(self, tokens_RC)

    with monkeypatch.context() as patch:
        patch.setattr(finetuning.Tuner, "step", stops)
        with pytest.raises(SystemExit) as stopped:
            main([*command, f"out={out}"])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert seen == list(range(step))
    said = capsys.readouterr().err
    where = "fine-tuning stopped at 640 of 1,536 tokens; the same command resumes there (SIGTERM)"
    assert said.splitlines()[-1] == f"rayscope: {where}"
    main([*command, f"out={out}"])
    assert "resuming at 640 of 1,536 tokens" in capsys.readouterr().err
    assert weights(out / "dictionaries") == weights(tmp_path / "whole/dictionaries")
    assert (out / "training.csv").read_text() == (tmp_path / "whole/training.csv").read_text()
    assert not list(out.glob("checkpoint*"))


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [None, 6])
def test_one_that_diverges_is_left_out(model, packed, tmp_path, stopped_at, monkeypatch, one_thread):
    """The other is as without it, resumed too, and the log's cells of the one are blank."""
    site, made = poor(model, packed)
    sound = copy.deepcopy(made["batchtopk"])
    finetune(model, rows_of(packed, 12), {site: {"batchtopk": sound}}, tmp_path, log_every=3)
    remove_checkpoints(tmp_path)
    made["topk"].lr = 1e30
    fresh, inner = copy.deepcopy(made), finetuning.Tuner.step

    def stops(self, tokens_RC):
        if self.done == stopped_at:
            os.kill(os.getpid(), signal.SIGTERM)
        inner(self, tokens_RC)

    if stopped_at:
        with monkeypatch.context() as patch:
            patch.setattr(finetuning.Tuner, "step", stops)
            with pytest.raises(Stopped):
                finetune(model, rows_of(packed, 12), {site: made}, tmp_path, log_every=3)
        made = fresh
    (found,) = finetune(model, rows_of(packed, 12), {site: made}, tmp_path, log_every=3)
    assert (found.hook, found.name, found.lr) == (HOOK, "topk", 1e30)
    assert 1 <= found.step <= 2
    for one, other in zip(sound.state_dict().values(), made["batchtopk"].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    log = pd.read_csv(tmp_path / "training.csv")
    assert log["tokens"].tolist() == [256 * n for n in (3, 6, 9, 12)]
    assert log[f"train/kl/{HOOK}/topk"].isna().all()
    assert log[f"train/kl/{HOOK}/batchtopk"].notna().all()


@pytest.mark.slow
def test_the_command_names_the_one_that_diverged(command, tmp_path, capsys, one_thread):
    for _ in range(2):  # and again, without training
        with pytest.raises(SystemExit) as stopped:
            main([*command, "finetuning.lr=1e30", f"out={tmp_path}"])
        assert stopped.value.code == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("rayscope: diverged, so not saved: ")
        assert said.count("lr=1e+30") == 4
        assert "finetuning.lr" in said
    assert not (tmp_path / "dictionaries").exists()


def test_a_checkpoint_begun_from_other_dictionaries_is_refused(model, packed, tmp_path, one_thread):
    site, made = poor(model, packed)
    finetune(model, rows_of(packed, 2), {site: made}, tmp_path)
    assert (tmp_path / "checkpoint.ckpt").is_file()
    with pytest.raises(ValueError, match=r"checkpoint.ckpt is of another run \(begun_from: .*\); remove it"):
        finetune(model, rows_of(packed, 2), {site: made}, tmp_path)
    site, made = poor(model, packed)
    with pytest.raises(ValueError, match=r"checkpoint.ckpt is of another run \(kl: 1.0 -> 2.0\); remove it"):
        finetune(model, rows_of(packed, 2), {site: made}, tmp_path, weight=2.0)


@pytest.mark.slow
def test_what_is_wrong_is_one_line(command, tmp_path, capsys):
    folder = next(arg for arg in command if arg.startswith("finetuning.folder"))
    cases = {
        ("stage=lk",): "stage=lk: dictionaries or kl",
        ("finetuning.folder=null",): "stage=kl: finetuning.folder is not set",
        ("finetuning.kl=-1",): "finetuning.kl=-1",
        ("finetuning.lr=0",): "finetuning.lr=0: a number above 0, or null",
        (f"out={Path(folder.partition('=')[2]).parent}",): "give another out=",
    }
    for extra, said in cases.items():
        with pytest.raises(SystemExit):
            main(latest(*command, f"out={tmp_path / 'wrong'}", *extra))
        assert said in capsys.readouterr().err
        assert not (tmp_path / "wrong").exists()


def test_an_exact_reconstruction_has_kl_0_and_finite_gradients(model, packed):
    """A dictionary that reconstructs exactly has KL 0, and its losses stay finite."""
    (site,) = resolve(HOOK, model)
    clean = CleanPass.run(model, torch.from_numpy(packed.train.tokens[:2].astype("int64")), [site])
    dictionary = AbsTopK(site.width, site.width, site.width)
    with torch.no_grad():
        dictionary.W_dec_LD.copy_(torch.eye(site.width))
        dictionary.W_enc_LD.copy_(torch.eye(site.width))
    passed = kl_pass(clean, site, dictionary, weight=1.0)
    assert passed.metrics["kl"].item() == pytest.approx(0, abs=1e-6)
    passed.loss.backward()
    assert all(p.grad.isfinite().all() for p in dictionary.parameters() if p.grad is not None)
    assert F.mse_loss(dictionary(clean.activations[site.key][0]), clean.activations[site.key][0]) < 1e-6
