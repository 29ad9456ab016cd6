"""scripts/fvu_by_tokens.py: a log written by hand, and none."""

import runpy
from pathlib import Path

import pytest

from rayscope.training.log import TrainingLog

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts/fvu_by_tokens.py"))


def test_means_between_halvings(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    log, name = TrainingLog(tmp_path / "run/training.csv"), "blocks.0.hook_resid_post/topk"
    for tokens, fvu in ((100, 0.9), (200, 0.5), (300, 0.4), (400, 0.2), (800, 0.1)):
        log.write(tokens, {f"train/fvu/{name}": fvu, f"train/l0/{name}": 8}, {})
    SCRIPT["main"]([str(tmp_path)])
    folder, line = capsys.readouterr().out.splitlines()
    assert folder == str(tmp_path / "run")
    assert line == "  blocks.0.hook_resid_post/topk: 0.900 at 100, 0.500 at 200, 0.300 at 400, 0.100 at 800"
    with pytest.raises(SystemExit, match=r"fvu_by_tokens: no training.csv in or below .*/none"):
        SCRIPT["main"]([str(tmp_path / "none")])
