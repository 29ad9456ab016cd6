"""The README's example runs as it stands, offline, and its layout is the tree."""

import re
from pathlib import Path

import pytest
import torch

from rayscope.dictionaries import load

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_example_runs(tmp_path, monkeypatch, capsys, one_thread):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.strip().splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    x_ND, codes_NL = names["batch"].activations[names["site"].key], names["codes_NL"]
    assert int((codes_NL > 0).sum(dim=1).max()) == 8
    error = (names["rays"](x_ND) - x_ND).square().sum() / (x_ND - x_ND.mean(dim=0)).square().sum()
    assert error < 0.6  # the mean alone leaves 1
    torch.testing.assert_close(load(tmp_path / "runs/rays/topk").encode(x_ND), codes_NL)
    assert capsys.readouterr().out.splitlines()[-1].startswith("[")


def test_layout_names_every_module_and_folder():
    (layout,) = re.findall(r"```\n(src/rayscope/.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    root = README.parent / "src/rayscope"
    modules = [path.name for path in root.glob("*.py") if not path.stem.startswith("__")]
    folders = [f"{path.name}/" for path in root.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [name for name in [*modules, *folders] if not re.search(rf"(?<![\w/]){re.escape(name)}", layout)] == []


def test_links_lead_to_files():
    """Those of pages outside docs, which `mkdocs build --strict` does not check."""
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        links = re.findall(r"\]\(([^)#]+)", (README.parent / page).read_text(encoding="utf-8"))
        assert [link for link in links if "://" not in link and not (README.parent / link).exists()] == []


def test_a_file_is_one_noun():
    """Two nouns in a file show in its length."""
    lengths = {
        str(path.relative_to(README.parent)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (README.parent / "src").rglob("*.py")
    }
    assert {path: length for path, length in lengths.items() if length > 300} == {}
