"""Every file under conf/ composes, and everything that it names can be made."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from rayscope.cli.command_line import COMMANDS, main
from rayscope.cli.groups import groups
from rayscope.dictionaries import Learned
from rayscope.evaluation.comparison import Baseline, compare
from rayscope.evaluation.entry import named_entries
from rayscope.model.sites import Site, resolve
from rayscope.pipeline import build
from rayscope.streams.source import Source
from rayscope.text import Files, Hub, Prose

ROOT = Path(str(files("rayscope.conf")))
PAGES = Path(__file__).parents[2]
CHOICES = [(group, choice) for group, choices in sorted(groups().items()) for choice in choices]
GIVEN = {"files": ["text.files=[a.txt]"], "hub": ["text.dataset=owner/name"]}  # what is mandatory


def compose(command: str, overrides: tuple[str, ...] = ()) -> DictConfig:
    with hydra.initialize_config_module("rayscope.conf", version_base="1.3"):
        return hydra.compose(command, [*overrides])


def groups_of(command: str) -> set[str]:
    """`dictionaries` of evaluate and features is the folder of saved ones."""
    found = {key for key in map(str, compose(command)) if key in groups()}
    return found - {"dictionaries"} if command in ("evaluate", "features") else found


def test_every_file_is_known():
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yaml")}
    choices = {f"{group}/{choice}.yaml" for group, choice in CHOICES}
    assert found == choices | {
        f"{name}.yaml"
        for name in [*COMMANDS, "base", "quiet", "dictionaries/shared/learned", "dictionaries/shared/k_sparse"]
    }


def test_the_pages_and_the_help_name_every_command(capsys):
    pages = [PAGES / "README.md", *(PAGES / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert [command for command in COMMANDS if f"rayscope {command}" not in text] == []
    main(["--help"])
    assert capsys.readouterr().out.startswith(f"rayscope {'|'.join(COMMANDS)} [key=value ...]\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_composes_with_each_choice_of_its_groups(command):
    seen, has = 0, groups_of(command)
    for group, choice in CHOICES:
        if group not in has:
            continue
        value = f"[{choice}]" if group == "dictionaries" and command == "train" else choice
        given = [one.replace("text.", f"{group}.") for one in GIVEN.get(choice, [])]
        config = compose(command, (f"{group}={value}", *given))
        OmegaConf.resolve(config)
        assert OmegaConf.missing_keys(config) <= {"out"}
        seen += 1
    assert seen >= (3 if command == "benchmark" else 10)


@pytest.mark.parametrize("choice", groups()["dictionaries"])
@pytest.mark.parametrize("width", [32, 128])
def test_dictionaries_are_made(choice, width, model):
    site = Site("blocks.0.hook_resid_pre", width, 0)
    config = compose("train", (f"dictionaries=[{choice}]", "latents=48", "k=6", "seed=9"))
    assert config.dictionaries
    for name, entry in config.dictionaries.items():
        dictionary = build(hydra.utils.instantiate(entry), site, model.vocabulary)
        assert isinstance(dictionary, Learned)
        assert (dictionary.width, dictionary.latents, dictionary.seed) == (width, 48, 9), name
        assert dictionary.k == (6 if choice != "demo" else int(str(name).rpartition("_k")[2]))
        assert set(entry) - {"_target_", "_partial_"} <= set(dictionary.arguments())


@pytest.mark.slow
@pytest.mark.parametrize("choice", groups()["baselines"])
def test_baselines_are_made(choice, model, packed):
    config = compose("evaluate", (f"baselines={choice}", "latents=40", "baselines.fit_tokens=512"))
    options = dict(config.baselines)
    assert options.pop("text") == "auto"
    listed = [Baseline(name, **hydra.utils.instantiate(entry)) for name, entry in options.pop("list").items()]
    topk = hydra.utils.instantiate(compose("train", ("latents=40", "k=8")).dictionaries.topk)
    sites = resolve("blocks.1.{hook_resid_post,mlp.hook_post}", model)
    learned = named_entries({site: {"mine": topk(site.width)} for site in sites})
    compared = compare(Source(model, packed, batch_size=64, round_tokens=512), learned, listed, **options)
    for site in sites:
        fitted = [entry for entry in compared.entries if entry.site == site and entry not in learned]
        kept = compared.fitted[site.key].sample
        negative = kept is not None and kept.vectors_SD.clamp_max(0).norm() / kept.vectors_SD.norm() > 0.1**0.5
        fits = {"svd_W_E": site.width == model.d_model, "nmf": not negative}
        fitting = {baseline.method for baseline in listed if fits.get(baseline.method, True)}
        assert {entry.method for entry in fitted} == fitting
        assert {entry.method for entry in fitted if entry.role != "baseline"} == fitting & {"random"}
        assert all(entry.dictionary.width == site.width for entry in fitted)


def test_everything_has_all_of_all():
    fits = {
        choice: {
            name: entry.fit for name, entry in compose("evaluate", (f"baselines={choice}",)).baselines.list.items()
        }
        for choice in ("all", "everything")
    }
    assert fits["all"].items() <= fits["everything"].items()


@pytest.mark.parametrize("choice", groups()["text"])
def test_texts_are_made_without_the_hub(choice, text_file):
    given = (f"text.files={text_file}",) if choice == "files" else tuple(GIVEN.get(choice, ()))
    source = hydra.utils.instantiate(compose("train", (f"text={choice}", *given)).text)
    if choice not in ("docs",):  # hashing every module takes seconds; test_text does that on a few
        assert type(source) is {"files": Files, "prose": Prose}.get(choice, Hub)
        assert len(source.fingerprint()) == 64
    assert source.max_tokens is None or source.max_tokens > 10**6


@pytest.mark.parametrize("choice", groups()["model"])
def test_models_are_made(choice, tiny_gpt2):
    config = compose("sites", (f"model={choice}", f"model.name={tiny_gpt2}", "model.context=16"))
    model = hydra.utils.instantiate(config.model, device="cpu")
    assert (model.context, model.d_model) == (16, 32)


@pytest.mark.slow
@pytest.mark.parametrize("choice", groups()["sites"])
def test_sites_are_found(choice, model):
    found = resolve(compose("train", (f"sites={choice}",)).sites.patterns, model)
    assert len(found) == {"every": 18, "middle": 2}.get(choice, 3)


def test_the_logger_is_made(tmp_path):
    logger = hydra.utils.instantiate(
        compose("train", ("logger=wandb", "logger.offline=true", f"out={tmp_path}")).logger
    )
    assert type(logger).__name__ == "WandbRun"
    assert not compose("train", ("logger=csv",)).get("logger")


def test_features_are_spoken_of_by_snapshots_that_exist():
    config = compose("demo")
    assert set(config.training.snapshot_names) <= set(config.dictionaries)


def test_import_of_the_package_and_help_are_light():
    program = (
        "import sys, rayscope; assert 'torch' not in sys.modules; import rayscope.cli.overrides; "
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
