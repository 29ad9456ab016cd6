"""The README's example runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_example_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "runs/rays/weights.safetensors").is_file()


def test_tree_names_every_module():
    tree = README.read_text()
    root = README.parent / "src/rayscope"
    modules = [path.stem for path in root.glob("*.py") if not path.stem.startswith("__")]
    folders = [path.name + "/" for path in root.iterdir() if path.is_dir() and path.name not in ("__pycache__",)]
    assert [name for name in [*modules, *folders] if name not in tree] == []
