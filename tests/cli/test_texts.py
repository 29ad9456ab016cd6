"""Which text the baselines are fitted on, and what is said of it."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from rayscope.baselines import pca_topk
from rayscope.cli.command_line import main
from rayscope.cli.texts import of_baselines
from rayscope.dictionaries import TopK, load
from rayscope.evaluation.comparison import Baseline, compare, reference_codecs
from rayscope.evaluation.entry import named_entries
from rayscope.evaluation.saved import load_dictionaries
from rayscope.model.sites import resolve
from rayscope.report.texts import texts_said, unlike_said
from rayscope.streams.source import Source
from rayscope.text import Prose, fingerprint_of, pack, said

HOOK = "blocks.1.hook_resid_post"
SMALL = ["threads=1", "baselines=pca", "baselines.fit_tokens=1024", "evaluation.tokens=512", "evaluation.draws=20"]
SMALL += ["evaluation.splice_tokens=256", "evaluation.validation_tokens=256", "latents=64"]
SMALL += ["evaluation.value_bits=[8]", "evaluation.coders=[own]"]


@pytest.fixture(scope="module")
def other(model):
    """Real prose, where the toy text is made up."""
    return pack(Prose(max_tokens=40_000), model.tokenizer, model.context)


@pytest.fixture
def sources(model, packed, other) -> tuple[Source, Source]:
    """Of the toy text and of real prose."""
    return tuple(Source(model, text, batch_size=64, round_tokens=512) for text in (packed, other))


def test_a_text_is_called_by_name_and_hash(packed, model, text_file):
    from rayscope.text import Files

    assert said(packed.provenance) == f"prose.txt {packed.fingerprint[:8]}"
    assert said({"sha256": "0123456789"}) == "text 01234567"
    assert [said(None), said({}), said({"sha256": 7}), said("docs")] == [""] * 4
    assert fingerprint_of(Files(str(text_file)), model.tokenizer, model.context) == packed.fingerprint
    assert fingerprint_of(Files(str(text_file)), model.tokenizer, model.context // 2) != packed.fingerprint


@pytest.mark.parametrize("place", [0, 1])
def test_baselines_are_fitted_on_the_text_named(sources, model, place, one_thread):
    """PCA's bias is the mean of that text's training vectors; so is what the reference `mean` gives."""
    (site,) = resolve(HOOK, model)
    learned = named_entries({site: {"topk": TopK(32, 48, 2)}})
    measured, fitting = sources[0], sources[place]
    compared = compare(measured, learned, [Baseline("pca_topk", pca_topk)], 2, 1024, fitting=fitting)
    x_ND = torch.cat([batch.activations[site.key] for batch in fitting.stream("train", [site], 1024)])
    pca = compared.entries[0].dictionary
    torch.testing.assert_close(pca.bias, x_ND.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reference_codecs(compared)[site]["mean"].mean_D, x_ND.mean(0), rtol=1e-4, atol=1e-4)
    x_other_ND = torch.cat([batch.activations[site.key] for batch in sources[1 - place].stream("train", [site], 1024)])
    assert (pca.bias - x_other_ND.mean(0)).norm() > 0.05 * x_ND.norm(dim=1).mean()
    assert said(pca.provenance["text"]) == said(fitting.text.provenance)


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "trained"
    main(["train", *source, "dictionaries=[topk]", f"sites.patterns=[{HOOK}]", "tokens=640", "latents=64", "k=4",
          "training.calibration_tokens=256", "threads=1", f"out={out}"])  # fmt: skip
    return out


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def chosen(run, sources, model):
    """of_baselines for the run's dictionaries and the real prose, as the text measured."""

    def choose(choice: str, measured: Source = sources[1]) -> Source:
        return of_baselines(
            choice, measured, load_dictionaries(run / "dictionaries", model), run / "dictionaries", None
        )

    return choose


def test_auto_is_the_dictionaries_own_text(chosen, sources):
    toy, prose = sources
    for choice in ("auto", "dictionaries"):
        assert chosen(choice).text.fingerprint == toy.text.fingerprint
        assert chosen(choice).text.folder == toy.text.folder
    assert chosen("evaluated") is prose
    assert chosen("auto", toy) is toy  # nothing is read again


@pytest.mark.parametrize("harm", ["no run", "text changed", "text gone", "no text named"])
def test_auto_falls_back_and_says_so(chosen, sources, run, tmp_path, text_file, capsys, harm):
    config = run / "config.yaml"
    if harm == "no run":
        config.unlink()
        reason = "no run's config.yaml says how to read prose.txt"
    elif harm == "no text named":
        for place in run.glob("dictionaries/*/*/config.json"):
            about = json.loads(place.read_text())
            del about["provenance"]["text"]
            place.write_text(json.dumps(about))
        reason = "the dictionaries do not say which text they were trained on"
    else:
        moved = tmp_path / "moved.txt"
        if harm == "text changed":
            moved.write_text(text_file.read_text() + " more")
        config.write_text(config.read_text().replace(str(text_file), str(moved)))
        (run / "environment.json").unlink()  # with its hash of the configuration
        reason = (
            "prose.txt .* is not what their run's config.yaml names" if harm == "text changed" else "no file matches"
        )
    assert chosen("auto") is sources[1]
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"baselines: fitted on the text that is measured, {said(sources[1].text.provenance)} (")
    with pytest.raises(ValueError, match=f"^baselines.text=dictionaries: .*{reason}.*; give baselines.text=evaluated$"):
        chosen("dictionaries")


def table(measured: str, learned: str, baselines: str) -> pd.DataFrame:
    roles = {"rays": learned, "told": learned, "baseline": baselines, "control": baselines, "reference": ""}
    return pd.DataFrame([{"role": role, "text": measured, "fitted_on": name} for role, name in roles.items()])


def test_unlike_texts_are_said():
    same, far, unlike = table("a 1", "a 1", "a 1"), table("b 2", "a 1", "a 1"), table("b 2", "a 1", "b 2")
    assert texts_said(same) == "Text: a 1, dictionaries and baselines fitted on its training split."
    assert texts_said(far) == "Text: measured on b 2; dictionaries and baselines fitted on a 1."
    assert texts_said(unlike) == "Text: measured on b 2; dictionaries fitted on a 1; baselines fitted on b 2."
    assert texts_said(table("b 2", "", "b 2")).endswith(
        "; dictionaries fitted on a text that is not named; baselines fitted on b 2."
    )
    assert [unlike_said(one) for one in (same, far)] == ["", ""]
    again = unlike.assign(calibrated_on=["b 2", "", "", "", ""], dictionary="batchtopk_k8")
    assert texts_said(again).endswith(" Thresholds of batchtopk_k8 set again on validation text of b 2.")
    assert texts_said(again.assign(calibrated_on=["a 1", "", "", "", ""])) == texts_said(unlike)
    assert unlike_said(unlike) == "Unlike with unlike: the dictionaries were fitted on a 1, the baselines on b 2."
    assert [texts_said(same.drop(columns="text")), unlike_said(same.drop(columns="text"))] == ["", ""]  # an old table


@pytest.mark.slow
def test_evaluate_on_another_text_says_what_was_fitted_where(source, run, other, packed, capsys):
    toy, prose = said(packed.provenance), said(other.provenance)
    tables = {}
    for choice in ("auto", "evaluated"):
        capsys.readouterr()
        main(["evaluate", *source[:3], "text=prose", "text.max_tokens=40_000", *SMALL, f"baselines.text={choice}",
              "overwrite=true", f"out={run}"])  # fmt: skip
        out = " ".join(capsys.readouterr().out.split())
        unlike = f"Unlike with unlike: the dictionaries were fitted on {toy}, the baselines on {prose}."
        assert (unlike in out) == (choice == "evaluated")
        assert f"Text: measured on {prose}" in out
        tables[choice] = pd.read_csv(run / "evaluation.csv").set_index(["dictionary", "metric", "position0"])
        inputs = json.loads((run / "evaluate.environment.json").read_text())["inputs"]
        assert inputs.get("baselines") == (packed.fingerprint if choice == "auto" else None)
    auto, evaluated = (tables[choice].groupby("role")["fitted_on"].unique() for choice in tables)
    assert auto["rays"] == evaluated["rays"] == [toy]
    assert (auto["baseline"], evaluated["baseline"]) == ([toy], [prose])
    assert set(tables["auto"]["text"]) == {prose}
    fvu = [tables[choice]["value"]["topk", "fvu", "excluded"] for choice in tables]
    assert fvu[0] == fvu[1]  # of the dictionary, which no choice of the baselines' text changes
    pca = [t[t["method"] == "pca_topk"].xs(("fvu", "excluded"), level=(1, 2))["value"].iloc[0] for t in tables.values()]
    assert pca[1] < pca[0]  # fitted on the text that it is measured on
    main(["report", f"out={run}"])
    assert unlike in (run / "report/index.html").read_text()


def test_a_dictionary_records_its_text(trained, packed):
    assert load(next(trained.glob("dictionaries/*/topk"))).provenance["text"] == packed.provenance
