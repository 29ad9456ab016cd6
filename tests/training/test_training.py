"""Training: alone equals together, the schedule, clipping, groups, snapshots, the log."""

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rayscope.dictionaries import (
    L1,
    AbsTopK,
    BatchTopK,
    BottleneckTopK,
    Gated,
    JumpReLU,
    MatryoshkaAbsTopK,
    MatryoshkaBatchTopK,
    MatryoshkaTopK,
    TiedTopK,
    TokenBiasTopK,
    TopK,
    load,
)
from rayscope.dictionaries.learned.rows import drawn_rows
from rayscope.model.sites import resolve
from rayscope.stopping import SIGNALS
from rayscope.streams.harvest import ActivationStream
from rayscope.training.log import EDGES, TrainingLog, histogram
from rayscope.training.train import log_spaced, train
from rayscope.training.trainer import DictionaryTrainer

RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"
STEPS, BATCH = 40, 64
PENALISED = {"jumprelu": JumpReLU, "gated": Gated, "l1": L1}
OTHERS = {  # at one site alone; the first three kinds are at two
    "soft": lambda width: TopK(width, 64, 3, seed=6, lr=0.02, decoder="soft_frozen"),
    "encoder": lambda width: TopK(width, 64, 3, seed=6, lr=0.02, encoder="frozen"),
    "matryoshka_topk": lambda width: MatryoshkaTopK(width, 64, 3, seed=7, lr=0.02),
    "matryoshka_abstopk": lambda width: MatryoshkaAbsTopK(width, 64, 3, seed=7, lr=0.02),
    "matryoshka_batchtopk": lambda width: MatryoshkaBatchTopK(width, 64, 3, seed=7, lr=0.02),
    "tied_topk": lambda width: TiedTopK(width, 64, 3, seed=8, lr=0.02),
    "bottleneck_topk": lambda width: BottleneckTopK(width, 64, 3, seed=9, lr=0.02, rank=5),
    "token_bias_topk": lambda width: TokenBiasTopK(width, 64, 3, seed=10, lr=0.02, vocabulary=320),
    **{name: lambda width, cls=cls: cls(width, 64, 4, seed=11, lr=0.01) for name, cls in PENALISED.items()},
}
pytestmark = pytest.mark.usefixtures("one_thread")


def make(name: str, width: int):
    """Small enough a run that the dead window (a tenth of it) makes latents dead."""
    if name in OTHERS:
        return OTHERS[name](width)
    if name == "topk":
        return TopK(width, 96, 2, seed=3, lr=0.01)
    if name == "abstopk":
        return AbsTopK(width, 48, 3, seed=4, lr=0.02)
    return BatchTopK(width, 64, 4, seed=5, lr=0.01, auxk=8)


def run(model, packed, folder: Path, wanted: dict[str, list[str]], rates=None, **options):
    """rates: {name: lr} instead of `make`'s."""
    sites = {site.hook: site for site in resolve(list(wanted), model)}
    dictionaries = {sites[hook]: {n: make(n, sites[hook].width) for n in names} for hook, names in wanted.items()}
    for named in dictionaries.values():
        for name, lr in (rates or {}).items():
            named[name].lr = lr
    stream = ActivationStream(
        model, packed.train, list(sites.values()), tokens=STEPS * BATCH, batch_size=BATCH, round_tokens=512
    )
    folder.mkdir(parents=True, exist_ok=True)
    diverged = train(stream, dictionaries, folder, **{"calibration": [stream[0]], "log_every": 10, **options})
    assert stream.next_batch == 0  # whoever reads it next begins at its first batch
    assert len(diverged) == sum(name in (rates or {}) for names in wanted.values() for name in names)
    return {hook: dictionaries[sites[hook]] for hook in wanted}


@pytest.fixture(scope="module")
def together(model, packed, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("together")
    everything = {RESID: ["topk", "abstopk", "batchtopk"], MLP: ["abstopk", "batchtopk", "topk", *OTHERS]}
    about = {site: {"site": site.hook, "model": {"name": "a", "sha256": "1"}} for site in resolve([RESID, MLP], model)}
    return folder, run(
        model, packed, folder, everything, snapshots=5, snapshot_names=["topk", "batchtopk"], about=about
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "name"),
    [(h, n) for h in (RESID, MLP) for n in ("topk", "abstopk", "batchtopk")] + [(MLP, name) for name in OTHERS],
)
def test_alone_equals_together_bitwise(model, packed, together, tmp_path, hook, name):
    alone = run(model, packed, tmp_path, {hook: [name]})[hook][name]
    with_others = together[1][hook][name]
    for (key, one), (_, other) in zip(alone.state_dict().items(), with_others.state_dict().items(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.slow
def test_a_token_bias_is_learned_at_the_stream_s_tokens(model, packed, together):
    (site,) = resolve(MLP, model)
    stream = ActivationStream(model, packed.train, [site], tokens=STEPS * BATCH, batch_size=BATCH, round_tokens=512)
    counts_V = torch.cat([batch.tokens_N for batch in stream]).bincount(minlength=320)
    learned = together[1][MLP]["token_bias_topk"]
    assert learned.seen_V.equal(
        2 * counts_V
    )  # in the sample that it starts from, here all of the stream, and in training
    assert learned.B_VD.any(1).equal(counts_V > 0)


@pytest.mark.slow
def test_the_order_does_not_matter(model, packed, together, tmp_path):
    turned = run(model, packed, tmp_path, {MLP: ["topk", "batchtopk"], RESID: ["batchtopk", "topk"]})
    for hook, named in turned.items():
        for name, dictionary in named.items():
            assert torch.equal(dictionary.W_enc_LD, together[1][hook][name].W_enc_LD)


def test_latents_were_dead_and_auxk_reached_them(model, packed, together, tmp_path):
    with (together[0] / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert max(float(row[f"train/dead/{MLP}/topk"]) for row in rows) > 0
    site = resolve(MLP, model)[0]
    stream = ActivationStream(model, packed.train, [site], tokens=STEPS * BATCH, batch_size=BATCH, round_tokens=512)
    without = TopK(site.width, 96, 2, seed=3, lr=0.01, auxk=0)
    train(stream, {site: {"topk": without}}, tmp_path)
    assert not torch.equal(without.W_enc_LD, together[1][MLP]["topk"].W_enc_LD)


def test_training_lowers_fvu_or_brings_l0_to_k_and_keeps_rows_of_unit_length(together):
    with (together[0] / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    for hook, named in together[1].items():
        for name, dictionary in named.items():
            values = [float(row[f"train/fvu/{hook}/{name}"]) for row in rows]
            if name in ("l1", "gated"):  # their first L0 is above k, which lowers the first FVU
                l0 = [float(row[f"train/l0/{hook}/{name}"]) for row in rows]
                assert abs(l0[-1] - 4) < 1 < abs(l0[0] - 4)
                assert values[-1] < 0.9
            else:
                assert values[-1] < values[0] < 1.5
            torch.testing.assert_close(dictionary.W_dec_LD.norm(dim=1), torch.ones(dictionary.latents))


def trainer(steps: int, *dictionaries) -> DictionaryTrainer:
    site = resolve("blocks.0.hook_resid_pre", Shape())[0]
    return DictionaryTrainer({site: {f"d{i}": d for i, d in enumerate(dictionaries)}}, steps=steps, batch_size=8)


class Shape:
    layers, d_model, d_mlp = 1, 8, 32


@pytest.mark.parametrize(("steps", "warmup"), [(100, 5), (40_000, 1000), (1, 1)])
def test_schedule_warms_up_stays_and_decays_to_nothing(steps, warmup):
    configured = trainer(steps, TopK(8, 16, 2)).configure_optimizers()
    rate = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert configured["lr_scheduler"]["interval"] == "step"
    assert rate(0) == pytest.approx(1 / warmup)
    assert rate(warmup - 1) == 1
    if steps > 1:
        assert rate(warmup) == rate(round(0.8 * steps)) == 1
        assert rate(round(0.9 * steps)) == pytest.approx(0.5)
        assert rate(steps - 1) == pytest.approx(5 / steps)
    assert rate(steps) == 0


def test_each_dictionary_is_a_group_with_its_own_rate():
    own = TopK(8, 2**12, 2)
    frozen = TopK(8, 16, 2, lr=0.5, decoder="frozen")
    module = trainer(1000, own, frozen)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [group["initial_lr"] for group in groups] == [2e-3, 0.5]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in own.parameters()}
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in frozen.parameters()} - {id(frozen.W_dec_LD)}


def test_each_group_is_clipped_by_its_own_norm():
    large, small = TopK(8, 16, 2), TopK(8, 16, 2, decoder="frozen")
    module = trainer(10, large, small)
    for parameter in large.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    for parameter in small.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3) if parameter.requires_grad else None
    before = small.W_enc_LD.grad.clone()
    module.on_before_optimizer_step(torch.optim.SGD(module.parameters()))
    norm = torch.cat([p.grad.flatten() for p in large.parameters()]).norm()
    assert norm.item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(small.W_enc_LD.grad, before)  # below 1: untouched, whatever its neighbour's norm
    along = (large.W_dec_LD.grad * large.W_dec_LD).sum(1)
    assert along.abs().max() < 1e-6


def test_snapshots_before_the_first_step_and_at_log_spaced_ones(together):
    folder, dictionaries = together
    tokens = sorted(int(place.name) for place in (folder / "snapshots").iterdir())
    assert tokens == [0, *(step * BATCH for step in log_spaced(STEPS, 5))]
    for hook, named in dictionaries.items():
        kept = [load(folder / "snapshots" / str(t) / hook.replace(".", "_") / "topk") for t in tokens]
        assert [d.provenance["tokens"] for d in kept] == tokens
        assert all(d.provenance["site"] == hook and d.provenance["model"]["sha256"] == "1" for d in kept)
        moved = [(d.directions - named["topk"].directions).norm().item() for d in kept]
        assert moved == sorted(moved, reverse=True)
        assert moved[-1] == 0  # the last is the end of training
        drawn = drawn_rows(kept[0].latents, kept[0].width, kept[0].seed, "topk")
        assert kept[0].directions.equal(drawn)  # the first is the initial rows, about the sample's mean
        assert kept[0].bias.any()
        assert not (folder / "snapshots" / str(tokens[0]) / hook.replace(".", "_") / "abstopk").exists()


def test_log_spaced():
    assert log_spaced(1000, 4) == [1, 10, 100, 1000]
    assert log_spaced(3, 10) == [1, 2, 3]
    assert (log_spaced(100, 0), log_spaced(100, 1)) == ([], [100])


def test_training_csv(together):
    with (together[0] / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["tokens"]) for row in rows] == [BATCH * step for step in (10, 20, 30, 40)]
    wanted = {
        f"train/{metric}/{hook}/{name}"
        for hook, named in together[1].items()
        for name in named
        for metric in ("fvu", "l0", "dead", "density", *(["coefficient"] if name in PENALISED else []))
    }
    assert set(rows[0]) == wanted | {"tokens"}
    for row in rows:
        assert float(row[f"train/l0/{RESID}/topk"]) <= 2
        assert 5 < float(row[f"train/l0/{MLP}/bottleneck_topk"]) <= 3 + 5
        for hook, named in together[1].items():
            for name, dictionary in named.items():
                counts = json.loads(row[f"train/density/{hook}/{name}"])
                assert sum(counts) == dictionary.latents
                assert len(counts) == len(EDGES) - 1


def test_histogram_of_densities():
    counts = histogram(torch.tensor([0.0, 1e-7, 10**-5.7, 0.02, 0.5, 1.0]))
    assert counts.tolist() == [3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2]  # from 1e-6 on, half a decade each


def test_the_log_forgets_what_comes_after_a_checkpoint_and_a_line_cut_short(tmp_path):
    log = TrainingLog(tmp_path / "training.csv")
    for tokens in (10, 20, 30):
        log.write(tokens, {"a": tokens / 2}, {})
    with log.path.open("a") as file:
        file.write("2")
    log.keep(20)
    assert log.path.read_text() == "tokens,a\n10,5\n20,10\n"
    log.keep(0)
    assert not log.path.exists()


LOG = "tokens,a\n10,5.0\n20,10.0\n30,15.0\n"


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", None),
        (b"tok", None),  # cut within the first line
        (b"tokens,a\n", None),
        (LOG.encode()[:-1], LOG[:-8]),
        (LOG.encode() + b"4", LOG),
        (LOG.encode() + b"40,1.0\n", LOG),  # after the checkpoint
    ],
)
def test_a_log_that_a_kill_cut_is_mended(tmp_path, content, kept):
    log = TrainingLog(tmp_path / "training.csv")
    log.path.write_bytes(content)
    log.keep(30)
    assert (log.path.read_text() if log.path.exists() else None) == kept
    log.write(40, {"a": 1}, {})
    assert log.path.read_text() == (kept or "tokens,a\n") + "40,1\n"


def test_a_log_of_other_dictionaries_is_not_mixed_with_this_one(tmp_path):
    log = TrainingLog(tmp_path / "training.csv")
    log.path.write_text(LOG)
    log.keep(30)
    with pytest.raises(ValueError, match=r"training\.csv, line 1: its columns are .*; move it away"):
        log.write(40, {"b": 1.0}, {})
    assert log.path.read_text() == LOG


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, 1),
        (b"name,value\n1,2\n", 1),
        (LOG.encode() + b"a,b\n", 5),
        (LOG.encode() + b"40,1,2\n", 5),
        (LOG.encode() + LOG.encode(), 5),  # of two runs
        (LOG.encode() + b"30,15.0\n", 5),
        (LOG.encode() + b"\0\0\0\0\n", 5),
        (LOG.encode() + b"x" * 200_000 + b",1\n", 5),
    ],
)
def test_a_log_that_is_none_is_one_line_with_its_place_and_stays(tmp_path, content, line):
    log = TrainingLog(tmp_path / "training.csv")
    log.path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"training\.csv, line {line}: .*; move it away"):
        log.keep(30)
    assert log.path.read_bytes() == content


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("log_every", value) for value in (-1, 2.5)),
        *(("checkpoint_seconds", value) for value in (-0.5, float("nan"))),
        ("checkpoint_steps", -1),
        *(("snapshots", value) for value in (-1, True)),
    ],
)
def test_what_is_out_of_range_is_named_as_the_user_spells_it(model, packed, tmp_path, option, value):
    with pytest.raises(ValueError, match=rf"^training\.{option}={value}: "):
        run(model, packed, tmp_path, {RESID: ["topk"]}, **{option: value})
    assert list(tmp_path.iterdir()) == []


def test_zero_logs_after_the_last_step_alone(model, packed, tmp_path):
    run(model, packed, tmp_path, {RESID: ["topk"]}, log_every=0)
    assert [row["tokens"] for row in rows_of(tmp_path)] == [str(STEPS * BATCH)]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "training.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_one_that_diverges_is_left_out_and_the_others_are_as_without_it(model, packed, together, tmp_path, capsys):
    wanted = {MLP: ["topk", "abstopk", "batchtopk"]}
    found = run(model, packed, tmp_path, wanted, rates={"topk": 1e30}, snapshots=5)[MLP]
    for name in ("abstopk", "batchtopk"):
        for (key, one), (_, other) in zip(
            found[name].state_dict().items(), together[1][MLP][name].state_dict().items(), strict=True
        ):
            assert torch.equal(one, other), (name, key)
    said = capsys.readouterr().err
    assert f"diverged and left out: topk at {MLP} after step 1 (64 tokens, lr=1e+30)" in said
    alone = rows_of(together[0])
    for row, other in zip(rows_of(tmp_path), alone, strict=True):
        for column, value in row.items():
            if column.endswith("/topk"):
                assert value == ""
            else:
                assert value == other[column]
    assert f"train/density/{MLP}/topk" in rows_of(tmp_path)[0]
    snapshots = {path.parent.name for path in (tmp_path / "snapshots").rglob("config.json")}
    assert snapshots == {"topk", "abstopk", "batchtopk"}  # topk of step 1, after which it was still finite
    assert not any((tmp_path / "snapshots").glob("2560/*/topk"))


@pytest.mark.slow
def test_weights_that_no_loss_shows_are_seen_before_anything_is_saved(model, packed, tmp_path, monkeypatch):
    """A row that no vector uses."""
    inner = DictionaryTrainer.optimizer_step

    def step(self, *args, **kwargs):
        inner(self, *args, **kwargs)
        if self.global_step == STEPS - 1:
            with torch.no_grad():
                next(self.each())[2].W_dec_LD[0, 0] = float("inf")

    monkeypatch.setattr(DictionaryTrainer, "optimizer_step", step)
    (site,) = resolve(MLP, model)
    stream = ActivationStream(model, packed.train, [site], tokens=STEPS * BATCH, batch_size=BATCH, round_tokens=512)
    (found,) = train(
        stream, {site: {"topk": make("topk", site.width), "abstopk": make("abstopk", site.width)}}, tmp_path
    )
    assert (found.name, found.hook, found.step) == ("topk", MLP, STEPS)
    assert rows_of(tmp_path)[-1][f"train/fvu/{MLP}/topk"] == ""
    assert float(rows_of(tmp_path)[-1][f"train/fvu/{MLP}/abstopk"]) < 1


def test_all_diverge(model, packed, tmp_path):
    run(model, packed, tmp_path, {MLP: ["topk", "abstopk"]}, rates={"topk": 1e30, "abstopk": 1e32})


def test_names_that_would_not_be_modules_are_refused():
    site = resolve("blocks.0.hook_resid_pre", Shape())[0]
    with pytest.raises(ValueError, match="holds a dot or a slash"):
        DictionaryTrainer({site: {"a.b": TopK(8, 16, 2)}}, steps=1, batch_size=1)


def test_an_interrupt_stays_one_and_the_next_is_heard(model, packed, tmp_path, monkeypatch):
    def interrupt(self, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(DictionaryTrainer, "record", interrupt)
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(KeyboardInterrupt):
        run(model, packed, tmp_path, {RESID: ["topk"]})
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


SLURM = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "here"}
TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"}
LAUNCHERS = {
    "slurm batch": {**SLURM, "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job"},
    "srun of 4": {**SLURM, "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"},
    "sbatch --ntasks=2": {**SLURM, "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "job"},
    "torchrun": {**TORCHRUN, "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "none"},
    "lsf": {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nowhere", "JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_RANK": "1"}
    | {"JSM_NAMESPACE_LOCAL_RANK": "1"},
    "kubeflow": {**TORCHRUN, "KUBERNETES_PORT": "tcp://10.0.0.1:443"},
    "lightning": {"PL_TRAINER_PRECISION": "bf16-true", "PL_TRAINER_LIMIT_TRAIN_BATCHES": "2", "PL_TRAINER_DEVICES": "3"}
    | {"PL_TRAINER_ACCUMULATE_GRAD_BATCHES": "4", "PL_TRAINER_FAST_DEV_RUN": "True", "PL_TRAINER_PROFILER": "simple"},
    "mpi": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_s_variables_change_nothing(model, packed, together, tmp_path, monkeypatch, launcher):
    """Nor does what lightning would take for a checkpoint of its own under Slurm."""
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for folder in (here, tmp_path / "run"):
        folder.mkdir(exist_ok=True)
        (folder / "hpc_ckpt_1.ckpt").write_bytes(b"another run's")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    found = run(model, packed, tmp_path / "run", {MLP: ["topk"]})[MLP]["topk"]
    for (key, one), (_, other) in zip(
        found.state_dict().items(), together[1][MLP]["topk"].state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), key
    assert rank_zero_only.rank == 0  # else loggers would be silent
    assert [path.name for path in here.iterdir()] == ["hpc_ckpt_1.ckpt"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("hpc_ckpt_1.ckpt", "training.csv", "checkpoint.ckpt")
    }
