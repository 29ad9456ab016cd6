"""The command line, through `main(argv)`: what it makes, what its options do,
and one line for everything that is wrong.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from rayscope import __version__
from rayscope.cli.command_line import main
from rayscope.dictionaries import TopK, find, fingerprint, load
from toys import latest

HOOKS = ("blocks.1.hook_resid_post", "blocks.1.mlp.hook_post")
SMALL = [
    "baselines.fit_tokens=1024", "evaluation.tokens=512", "evaluation.splice_tokens=256", "evaluation.draws=20",
]  # fmt: skip
FEATURES = [
    "features.tokens=1024", "features.most_frequent=4", "features.spaced=2", "features.min_count=20",
    "features.contexts=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(source) -> list[str]:
    return [*source, "tokens=1280", "latents=64", "k=4", "training.calibration_tokens=256", "training.log_every=5"]


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "trained"
    main(["train", *small, "threads=1", f"out={out}"])
    return out


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test runs in an empty folder, in which nothing may appear unasked; the number of threads is put back."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    assert list(here.iterdir()) == []


@pytest.fixture
def wrong(capsys):
    """Runs a command that must fail, and returns the one line that says why."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(latest(*argv))
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith(("text: packed", "training: lr"))]
        assert stopped.value.code == 1
        assert out == ""
        assert len(lines) == 1, err
        assert lines[0].startswith("rayscope: ")
        return lines[0].removeprefix("rayscope: ")

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "no command 'trian'; nearest: train"),
        (["zzz"], "no command 'zzz'; there are demo, train, evaluate, features, study, report, sites"),
        (["train", "tokns=3"], "no option 'tokns'; nearest: tokens"),
        (["train", "stream.batchsize=3"], "no option 'stream.batchsize'; nearest: stream.batch_size"),
        (["evaluate", "k=3"], "no option 'k'; nearest: model, text,"),
        (["train", "text=files", "text.files=a.txt", "tokns=3"], "no option 'tokns'; nearest: tokens"),
        (["train", "text=fils"], "no text=fils; nearest: files"),
        (["train", "dictionaries=[topk,btchtopk]"], "no dictionaries=btchtopk; nearest: batchtopk"),
        (["train", "logger=tensorboard"], "no logger=tensorboard; nearest: csv, wandb"),
        (["train", "logger=null"], "no logger=null; nearest: csv, wandb"),
        (["train", "-m", "sed=0,1"], "no option 'sed'; nearest: seed"),
        (["train", "seed=0,1"], "seed=0,1: give -m to run several"),
        (["train", "tokens"], "'tokens' is not key=value"),
        (["TRAIN"], "no command 'TRAIN'; nearest: train"),
        (["--cfg", "job", "train"], "--cfg: the command comes first, as in rayscope train --cfg"),
        (["train", "--k", "8"], "--k: options have no dashes; give k=..."),
        (["train", "text.files=[a.txt]"], "text.files is an option of text=files; choose it as well"),
        (["train", "logger.project=x"], "logger.project is an option of logger=wandb; choose it as well"),
        (["train", "dictionaries.l1.k=3"], "dictionaries.l1.k: no l1 is trained; add it to dictionaries=[...]"),
        (["train", "+logger=wandb"], "+logger: logger is there already; give it without the +"),
        (["train", "k=${nope}"], "k=${nope}: there is no option nope"),
        (["train", "k=${oc.env:NOPE}"], "k=${oc.env:NOPE}: Environment variable 'NOPE' not found"),
        (["train", "+model@other=tiny"], "no option 'other._target_'; nearest: text._target_, model._target_"),
        (["train", "out="], "out=: a path, not empty"),
        (["train", "text=files"], "text.files is not set; give text.files=..."),
        (["train", "tokens=many"], "tokens=many: a whole number of at least 1"),
        (["train", "tokens=1.5"], "tokens=1.5: a whole number of at least 1"),
        (["train", "overwrite=yes"], "overwrite=yes: true or false"),
        (["train", "threads=0"], "threads=0: a whole number of at least 1, or null"),
        (["train", "device=tpu"], "device=tpu: cpu, cuda, cuda:0, ... or auto"),
        (["report", "out=missing"], "missing is not a folder"),
        (["evaluate", "out=missing", "text=files"], "text.files is not set"),
    ],
)
def test_what_is_wrong_with_an_argument_is_one_line(wrong, argv, said):
    assert wrong(*argv).startswith(said)


def test_no_cuda(wrong, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert wrong("sites", "device=cuda") == "device=cuda: no CUDA device here; use device=cpu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["sites.patterns=[blocks.1.hook_resid_pots]"], "nearest: blocks.1.hook_resid_post"),
        (["sites.patterns=[blocks.9.hook_resid_post]"], "in this model of 3 layers; nearest: blocks."),
        (["k=65"], "k=65 exceeds the 64 latents; lower k or raise latents"),
        (["+dictionaries.topk.foo=1"], "dictionaries.topk.foo: no argument of rayscope.dictionaries.TopK; nearest: "),
        (["tokens=10"], "tokens=10 is less than one batch of 64"),
        (["precision=fp64"], "precision=fp64: fp32 or bf16"),
        (["model.name=./nowhere"], "model.name=./nowhere: no such folder"),
        (["model.context=64"], "has a context of 32"),
    ],
)
def test_bad_input_leaves_nothing_behind(wrong, small, tmp_path, more, said):
    assert said in wrong("train", *small, *more, f"out={tmp_path / 'deep' / 'run'}")
    assert not (tmp_path / "deep").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["features.tokens=10"], "features.tokens=10 is less than one batch of 64"),
        (["baselines.fit_tokens=10"], "baselines.fit_tokens=10 is less than one batch of 64"),
        (["training.calibration_tokens=10"], "training.calibration_tokens=10 is less than one batch of 64"),
        (
            ["stream.batch_size=8192", "tokens=8192", "features.tokens=8192", "stream.round_tokens=8192"],
            "split validation has ",
        ),
        (["features.min_count=99999"], "features.min_count=99999: no token occurs so often"),
    ],
)
def test_demo_says_before_training_that_the_text_is_too_small(wrong, small, tmp_path, more, said):
    assert said in wrong("demo", *small, *SMALL, *FEATURES, "dictionaries=[topk]", *more, f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_run_that_never_began_does_not_stand_in_the_way_of_the_right_one(wrong, small, tmp_path):
    (tmp_path / "run").mkdir()  # an empty folder that is there already stays
    wrong("train", *small, "k=65", f"out={tmp_path / 'run'}")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "more", "said"),
    [
        ("gone.txt", None, [], "text.files: no file matches"),
        ("empty.txt", b"", [], "is empty"),
        ("blank.txt", b" \n\n \n", [], "text"),
        ("latin.txt", b"caf\xe9 " * 2000, [], "is not UTF-8"),
        ("rows.jsonl", b'{"body": "a"}\n', [], "text.column=text: "),
        ("rows.csv", b"title,body\na,b\n", ["text.column=bod"], "has no such column; it has body"),
        ("notes.doc", b"a", [], "is of type '.doc'"),
        ("short.txt", b"too short to fill a row", [], "less than one row of 32"),
    ],
)
def test_bad_text(wrong, small, tmp_path, cache, name, content, more, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = set(cache.rglob("*"))
    assert said in wrong("train", *small, f"text.files={tmp_path / name}", *more, f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
    assert set(cache.rglob("*")) - before <= {cache / "text"}


def test_model_without_tokenizer(wrong, tiny_gpt2, tmp_path):
    shutil.copytree(tiny_gpt2, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer.json"))
    assert "the folder has no tokenizer.json; save the tokenizer there" in wrong(
        "sites", "model=gpt2", f"model.name={tmp_path / 'model'}", "model.context=null"
    )


def test_model_with_nan(wrong, small, tiny_gpt2, tmp_path):
    from transformers import GPT2LMHeadModel

    shutil.copytree(tiny_gpt2, tmp_path / "model")
    network = GPT2LMHeadModel.from_pretrained(tiny_gpt2)
    with torch.no_grad():
        network.transformer.h[1].mlp.c_fc.bias[3] = float("nan")
    network.save_pretrained(tmp_path / "model")
    said = wrong("train", *small, f"model.name={tmp_path / 'model'}", f"out={tmp_path / 'run'}")
    assert "activations at blocks.1." in said
    assert "vectors hold NaN or infinity" in said
    assert not (tmp_path / "run").exists()


class Full:
    """A disk that is full for the file names given: opening one for writing fails."""

    def __init__(self, *parts: str):
        self.parts, self.open = parts, Path.open

    def __call__(self, path, mode="r", *args, **kwargs):
        if mode[0] in "wax" and any(part in str(path) for part in self.parts):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return self.open(path, mode, *args, **kwargs)


NO_SPACE = "no space left on the disk of "


def full(*parts):
    disk = Full(*parts)
    return lambda path, mode="r", *args, **kwargs: disk(path, mode, *args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["train.tokens", "config.yaml", "environment.json"])
def test_no_disk_space_before_anything_is_made(wrong, small, tmp_path, monkeypatch, parts):
    monkeypatch.setattr(Path, "open", full(parts))
    said = wrong("train", *small, f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'run'}")
    assert said.startswith(NO_SPACE)
    assert parts in said
    assert not (tmp_path / "run").exists()
    assert list((tmp_path / "cache").rglob("*.tokens")) == []


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["checkpoint", "weights.safetensors", "training.csv", "trained.json"])
def test_no_disk_space_while_it_trains(wrong, small, trained, tmp_path, monkeypatch, capsys, parts):
    command = ["train", *small, "threads=1", "training.checkpoint_steps=5", f"out={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full(parts))
        said = wrong(*command)
    assert said.startswith(NO_SPACE)
    begun = parts not in ("checkpoint", "training.csv")  # before which there is no checkpoint
    assert said.endswith("the same command resumes" if begun else "run the same command again")
    assert not any(path.name.startswith(".") for path in (tmp_path / "run").rglob("*"))
    capsys.readouterr()
    main(command)  # with space again
    late = parts in ("weights.safetensors", "trained.json")  # then only the saving is left
    assert ("resuming at 1,280 of 1,280 tokens" in capsys.readouterr().err) == late
    for name, place in find(tmp_path / "run" / "dictionaries").items():
        assert load(place).provenance == load(trained / "dictionaries" / name).provenance
        assert (place / "weights.safetensors").read_bytes() == (
            trained / "dictionaries" / name / "weights.safetensors"
        ).read_bytes()


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.slow
def test_no_disk_space_for_a_table(wrong, source, copy, monkeypatch):
    monkeypatch.setattr(Path, "open", full("evaluation.csv"))
    before = {path.name for path in copy.iterdir()}
    assert wrong("evaluate", *source, *SMALL, "baselines=none", f"out={copy}").startswith(NO_SPACE)
    assert not (copy / "evaluation.csv").exists()
    assert {path.name for path in copy.iterdir()} - before <= {
        "latent_density.csv", "encode_seconds.csv", "evaluate.config.yaml", "evaluate.environment.json",
    }  # fmt: skip


def test_sites_are_listed_with_their_widths(capsys, tiny_gpt2):
    main(["sites", "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * 6
    assert lines[:4] == [
        "blocks.0.hook_resid_pre\t32", "blocks.0.hook_attn_out\t32", "blocks.0.hook_resid_mid\t32",
        "blocks.0.mlp.hook_post\t128",
    ]  # fmt: skip


def test_the_model_that_ships(capsys):
    main(["sites"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 * 6
    assert "blocks.3.mlp.hook_post\t1024" in lines


@pytest.mark.slow
def test_what_a_run_records(trained, small):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert (config["tokens"], config["k"], config["threads"]) == (1280, 4, 1)
    assert config["dictionaries"]["topk"]["latents"] == 64  # resolved
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["threads"] == 1
    assert environment["command"].startswith("rayscope train model=gpt2")
    assert environment["versions"]["rayscope"] == __version__
    assert environment["versions"]["torch"] == torch.__version__
    places = find(trained / "dictionaries")
    assert set(places) == {f"{hook.replace('.', '_')}/{n}" for hook in HOOKS for n in ("topk", "abstopk", "batchtopk")}
    about = load(places["blocks_1_mlp_hook_post/topk"]).provenance
    assert (about["site"], about["tokens"], about["seed"], about["precision"]) == (HOOKS[1], 1280, 0, "fp32")
    assert {path.name for path in trained.iterdir()} == {
        "config.yaml", "environment.json", "finished.json", "trained.json", "training.csv", "dictionaries",
    }  # fmt: skip


def topk(folder: Path) -> torch.Tensor:
    return load(folder / "dictionaries" / "blocks_1_hook_resid_post" / "topk").directions


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", ["tokens=640", "seed=1", "precision=bf16", "stream.batch_size=32"], ids=lambda o: o.split("=")[0]
)
def test_options_act(trained, small, tmp_path, option):
    out = tmp_path / "other"
    main(latest("train", *small, "threads=1", "dictionaries=[topk]", option, f"out={out}"))
    about = load(out / "dictionaries" / "blocks_1_hook_resid_post" / "topk").provenance
    assert not torch.equal(topk(out), topk(trained))
    name, value = option.split("=")
    if name in ("tokens", "seed"):
        assert about[name] == int(value)
    elif name == "precision":
        assert about[name] == value
        assert (topk(out) - topk(trained)).abs().median() < 0.05  # the same run, a little rougher


@pytest.mark.slow
def test_a_finished_run_says_so_and_overwrite_redoes_it(small, copy, capsys, wrong):
    before = copy / "finished.json"
    stamp = before.stat().st_mtime_ns
    command = ["train", *small, "threads=1", f"out={copy}"]
    main(command)
    assert "this train is finished already (overwrite=true redoes it)" in capsys.readouterr().err
    assert before.stat().st_mtime_ns == stamp
    said = wrong(*command, "k=8", "latents=32")
    assert "holds a run of train with another configuration (" in said
    assert "latents: 64 -> 32; k: 4 -> 8; and 2 more" in said or "k: 4 -> 8" in said
    assert before.stat().st_mtime_ns == stamp
    main([*command, "dictionaries=[topk]", "overwrite=true"])
    assert before.stat().st_mtime_ns != stamp
    (aside,) = copy.parent.glob("run.old-*")
    assert (aside / "finished.json").stat().st_mtime_ns == stamp
    assert len(list((aside / "dictionaries").glob("*/*"))) == 6
    assert [place.name for place in sorted((copy / "dictionaries").glob("*/*"))] == ["topk", "topk"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["k=65"], "k=65 exceeds the 64 latents"),
        (["sites.patterns=[blocks.1.hook_resid_pots]"], "nearest: blocks.1.hook_resid_post"),
        (["text.files=gone.txt"], "text.files: no file matches"),
        (["tokens=10"], "tokens=10 is less than one batch"),
    ],
    ids=["k", "site", "text", "tokens"],
)
def test_bad_input_with_overwrite_leaves_the_finished_run_as_it_was(wrong, small, copy, capsys, more, said):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert said in wrong("train", *small, *more, "overwrite=true", f"out={copy}")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    main(["train", *small, "threads=1", f"out={copy}"])
    assert "this train is finished already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dictionary_that_is_gone_is_said_and_not_made_up(wrong, small, copy):
    place = copy / "dictionaries" / "blocks_1_hook_resid_post" / "topk"
    shutil.rmtree(place)
    said = wrong("train", *small, "threads=1", f"out={copy}")
    assert said.startswith(
        f"{place / 'config.json'} is missing, though trained.json says that it is trained; put it back"
    )
    assert said.endswith("overwrite=true or another out=")


@pytest.mark.slow
def test_a_folder_with_outputs_of_another_run_is_refused(wrong, small, copy):
    (copy / "config.yaml").unlink()
    for overwrite in ("false", "true"):
        said = wrong("train", *small, f"out={copy}", f"overwrite={overwrite}")
        assert "holds finished.json, but no rayscope train that wrote it" in said


@pytest.mark.slow
def test_evaluate_features_and_report(source, copy, capsys):
    main(["evaluate", *source, *SMALL, "latents=64", f"out={copy}"])
    assert "Do rays beat" in capsys.readouterr().out
    table = pd.read_csv(copy / "evaluation.csv")
    assert set(table["site"]) == set(HOOKS)
    assert {"topk", "abstopk", "batchtopk", "identity", "mean", "position0"} < set(table["dictionary"])
    assert table["dictionary"].str.startswith("pca_prefix_k").any()
    coders = table.groupby("dictionary")["coder"].first()
    assert coders["topk_omp"] == coders["batchtopk_omp"] == "omp"
    assert set(coders.drop(["topk_omp", "abstopk_omp", "batchtopk_omp"])) == {"own"}
    seconds = pd.read_csv(copy / "encode_seconds.csv")
    assert set(seconds["dictionary"]) == set(table["dictionary"]) - {"identity", "mean", "position0"}
    assert (seconds["seconds_per_1000"] > 0).all()
    assert (seconds["threads"] >= 1).all()
    also = seconds.groupby("method")["also"].first()
    assert also.loc["pca_topk"] == "topk omp pursuit fista"
    assert also.loc["token_means"] == "omp"
    main(["evaluate", *source, *SMALL, "latents=64", f"out={copy}"])
    assert "this evaluate is finished already" in capsys.readouterr().err
    main(["features", *source, "baselines.fit_tokens=1024", *FEATURES, f"out={copy}"])
    found = pd.read_csv(copy / "token_features.csv", keep_default_na=False)
    assert {"topk", "linear_probe"} <= set(found["dictionary"])
    assert isinstance(json.loads((copy / "contexts.json").read_text()), list)
    capsys.readouterr()
    main(["report", f"out={copy}"])
    assert capsys.readouterr().out.strip() == f"report: {copy / 'report' / 'index.html'}"
    assert (copy / "report" / "index.html").is_file()
    assert yaml.safe_load((copy / "config.yaml").read_text())["tokens"] == 1280  # the training's own, still
    assert yaml.safe_load((copy / "evaluate.config.yaml").read_text())["evaluation"]["tokens"] == 512
    trained, measured = (
        json.loads((copy / f"{prefix}environment.json").read_text())["inputs"] for prefix in ("", "evaluate.")
    )
    assert measured == {**trained, "dictionaries": fingerprint(copy / "dictionaries")}
    assert (
        trained["text"]
        == load(copy / "dictionaries" / HOOKS[0].replace(".", "_") / "topk").provenance["text"]["sha256"]
    )


def test_a_coder_that_is_none_is_said_before_anything_is_read(wrong, tmp_path):
    for given, said in (
        ("[own,opm]", "evaluation.coders: no coder 'opm'; nearest: omp"),
        ("[lars]", "evaluation.coders: no coder 'lars'; it is own, refined, topk, omp, pursuit or fista"),
        ("[]", "evaluation.coders=[]: give one at least of own, refined, topk, omp, pursuit or fista"),
        ("[omp,omp]", "evaluation.coders=[omp,omp]: give each coder once"),
        ("omp", "evaluation.coders=omp: a list, each a coder, not empty, such as [own, omp]"),
    ):
        assert wrong("evaluate", f"out={tmp_path / 'out'}", f"evaluation.coders={given}").endswith(said)


@pytest.mark.slow
def test_evaluate_a_dictionary_saved_by_hand(source, tmp_path, wrong):
    dictionary = TopK(32, 64, 4, seed=1)
    dictionary.save(tmp_path / "mine", provenance={"site": HOOKS[0]})
    command = ["evaluate", *source, *SMALL, "baselines=none", f"dictionaries.folder={tmp_path / 'mine'}"]
    main([*command, f"out={tmp_path / 'out'}"])
    table = pd.read_csv(tmp_path / "out" / "evaluation.csv")
    assert set(table["dictionary"]) == {"mine", "mine_omp", "identity", "mean", "position0"}

    dictionary.save(tmp_path / "mine", provenance={"site": HOOKS[1]})
    assert "mine: width 32, but blocks.1.mlp.hook_post of " in (said := wrong(*command, f"out={tmp_path / 'new'}"))
    assert said.endswith("has 128")
    dictionary.save(tmp_path / "mine")
    assert "does not say the site" in wrong(*command, f"out={tmp_path / 'new'}")
    dictionary.save(tmp_path / "mine", provenance={"site": HOOKS[0], "model": {"name": "x", "sha256": "0" * 64}})
    assert "trained on model x with other weights" in wrong(*command, f"out={tmp_path / 'new'}")
    shutil.rmtree(tmp_path / "mine")
    assert "no saved dictionary" in wrong(*command, f"out={tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_multirun(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["dictionaries=[topk]", "tokens=640"]
    main(latest("train", *small, *short, "-m", "seed=0,1", f"out={tmp_path}/seed_${{seed}}"))
    assert not torch.equal(topk(tmp_path / "seed_0"), topk(tmp_path / "seed_1"))
    for seed in (0, 1):
        assert yaml.safe_load((tmp_path / f"seed_{seed}" / "config.yaml").read_text())["seed"] == seed


@pytest.mark.slow
def test_hydra_flags(capsys):
    main(["train", "k=5", "--cfg", "job"])
    assert yaml.safe_load(capsys.readouterr().out)["k"] == 5
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert not stopped.value.code
    files = Path(str(resources.files("rayscope.conf"))).glob("dictionaries/*.yaml")
    assert f"dictionaries: {', '.join(sorted(path.stem for path in files))}" in capsys.readouterr().out


def test_help_and_version(capsys):
    main(["--help"])
    assert (
        "rayscope demo|train|evaluate|features|study|report|sites|benchmark [key=value ...]" in capsys.readouterr().out
    )
    main(["--version"])
    assert capsys.readouterr().out == f"rayscope {__version__}\n"


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("rayscope ", "demo train evaluate features study report sites benchmark"),
        ("rayscope de", "demo"),
        ("rayscope train text=f", "text=files text=fineweb"),
        ("rayscope evaluate evaluation.t", "evaluation.tokens="),
    ],
)
def test_shell_completion(capsys, monkeypatch, line, choices):
    monkeypatch.setenv("COMP_LINE", line)
    main(["-sc", "query=bash"])
    assert capsys.readouterr().out.strip() == choices


def test_words_of_benchmark_and_study_are_told_from_values_of_flags(capsys):
    main(["benchmark", "--cfg", "job", "step", "rounds=3", "many"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["parts"], shown["rounds"]) == (["step", "many"], 3)
    main(["study", "--cfg", "job", "surrogate"])
    assert yaml.safe_load(capsys.readouterr().out)["study"]["name"] == "surrogate"


def test_shell_completion_of_nothing_is_one_line(wrong):
    assert wrong("-sc").startswith("-sc: give install=bash")


def test_shell_completion_installs(capsys):
    main(["-sc", "install=bash"])
    assert capsys.readouterr().out.rstrip().endswith("-F hydra_bash_completion rayscope")


@pytest.mark.slow
def test_demo_end_to_end_in_a_process(source, tmp_path):
    out = tmp_path / "demo"
    done = subprocess.run(
        [
            sys.executable, "-m", "rayscope", "demo", *source, *SMALL, *FEATURES, "latents=64", "tokens=1920",
            "training.calibration_tokens=256", "training.snapshots=3", f"out={out}",
        ],
        capture_output=True, text=True, cwd=tmp_path / "here",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"report: {out / 'report' / 'index.html'}")
    assert "Do rays beat" in done.stdout
    for name in (
        "config.yaml", "environment.json", "training.csv", "evaluation.csv", "latent_density.csv", "encode_seconds.csv",
        "token_features.csv",
        "contexts.json", "report/index.html", "finished.json",
    ):  # fmt: skip
        assert (out / name).stat().st_size, name
    for hook in HOOKS:
        for name in ("topk_k4", "topk_k8", "topk_k16", "topk_k32", "abstopk_k8", "batchtopk_k8", "topk_frozen_k8"):
            folder = out / "dictionaries" / hook.replace(".", "_") / name
            assert {path.name for path in folder.iterdir()} == {"config.json", "weights.safetensors"}
    assert len(list((out / "snapshots").iterdir())) == 4  # the rows drawn, and three
    assert not (out / "checkpoint.ckpt").exists()
