"""The pages of docs: those that a script writes are current, and the examples work."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from rayscope.cli.options import OPTIONS, declared
from rayscope.cli.values import Anything
from rayscope.dictionaries import KINDS, load
from rayscope.model.sites import resolve
from rayscope.streams.source import Source
from rayscope.studies import Prediction, Setting, conduct
from rayscope.text import pack

ROOT = Path(__file__).parents[1]


@pytest.fixture
def example() -> dict:
    """What docs/extending.md defines, as one module."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(encoding="utf-8"), re.DOTALL)
    module: dict = {"__name__": "my_module"}
    exec(compile("\n".join(blocks), "docs/extending.md", "exec"), module)
    yield module
    KINDS.pop("non_negative_topk")


@pytest.fixture(scope="module")
def written() -> dict:
    return runpy.run_path(str(ROOT / "scripts/docs_pages.py"))


@pytest.mark.parametrize("name", ["options.md", "benchmarks.md"])
def test_a_written_page_is_current(name, written):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == written["PAGES"][name](), (
        "python scripts/docs_pages.py"
    )


def test_every_declared_option_is_on_the_page(written):
    page = written["options_page"]()
    for key, kind in OPTIONS.items():
        if isinstance(kind, Anything) or key.endswith(written["HIDDEN"]):
            continue
        for part, like in written["ALIKE"].items():
            if key.startswith(f"{part}."):
                key = key.replace(part, like)
                assert declared(key).what == kind.what
        assert f"`{key.replace('*', 'NAME')}`" in page


def test_the_dictionary_of_the_page_learns_and_is_read_again(example, tmp_path, one_thread):
    torch.manual_seed(0)
    x_ND = torch.rand(512, 16)
    dictionary = example["NonNegativeTopK"](width=16, latents=64, k=4, lr=1e-2)
    dictionary.prepare(x_ND, dead_window=10**6)
    optimiser, before = torch.optim.Adam(dictionary.parameters(), lr=1e-2), None
    for _ in range(40):
        optimiser.zero_grad()
        loss = sum(dictionary.losses(x_ND).values())
        loss.backward()
        dictionary.project_gradients()
        optimiser.step()
        dictionary.project_weights()
        before = loss.item() if before is None else before
    assert loss.item() < 0.9 * before
    assert (dictionary.directions >= 0).all()
    again = load(dictionary.save(tmp_path / "mine", provenance={}))
    torch.testing.assert_close(again(x_ND), dictionary.eval()(x_ND))


def test_the_baseline_of_the_page_is_an_orthonormal_basis(example):
    class Fit:
        site = type("Site", (), {"width": 8})
        mean_D = torch.arange(8.0)

    basis = example["orthonormal"](Fit)
    x_ND = torch.randn(32, 8)
    torch.testing.assert_close(basis.directions @ basis.directions.T, torch.eye(8))
    torch.testing.assert_close(basis.with_k(8)(x_ND), x_ND)


def test_the_source_and_the_study_of_the_page(example, model, tmp_path, one_thread):
    words = ["the", "river", "and", "the", "old", "house", "stood", "in", "the", "light", "of", "the", "morning"]
    lines = [" ".join(words[i % 12 :] + words * (1 + i % 5)) for i in range(200)]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines))
    source = example["Lines"](path)
    documents = list(source.documents())
    assert [text for _, text in documents] == lines
    before = source.fingerprint()
    packed = pack(source, model.tokenizer, model.context, tmp_path / "cache")
    path.write_text("\n".join([*lines, "more"]))
    assert source.fingerprint() != before
    sites = tuple(resolve(["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"], model))
    setting = Setting(Source(model, packed, batch_size=64, round_tokens=256), sites, (0, 1), tmp_path)
    predictions = {"growth": Prediction("they are at least twice as long", ">= 2")}
    verdict = conduct(
        lambda setting: example["growth"](setting, 256),
        setting,
        name="growth",
        question="?",
        predictions=predictions,
        size="demo",
    )
    stream = setting.source.stream("test", sites, 256)
    first, last = (
        torch.stack([batch.activations[site.key].norm(dim=1).mean() for batch in stream]).mean() for site in sites
    )
    assert (tmp_path / "figure.svg").read_text().startswith("<svg")
    assert verdict["predictions"]["growth"]["observed"] == pytest.approx(float(last / first), rel=0.2)
