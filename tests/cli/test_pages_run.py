"""The command lines of README and docs that need no hub do what they say, in the order of the pages,
with less text and smaller sizes.
"""

import re
import shlex
import sys

import pytest
import torch
from test_overrides import ROOT, lines

from rayscope.cli.command_line import main
from rayscope.dictionaries import base
from toys import latest

HUB = ("model=gpt2", "text=openwebtext", "text=fineweb", "text=hub", "logger=wandb")
SIZES = {
    "train": "tokens=1280 latents=64 k=4 training.calibration_tokens=256 finetuning.tokens=256 finetuning.rows=2",
    "evaluate": "latents=64 baselines.fit_tokens=512 evaluation.tokens=512 evaluation.splice_tokens=256 "
    "evaluation.draws=20 "
    "evaluation.validation_tokens=256",
    "features": "latents=64 baselines.fit_tokens=512 features.tokens=1024 features.most_frequent=3 features.spaced=0 "
    "features.min_count=5 "
    "features.contexts=2",
}


@pytest.mark.slow
def test_the_lines_run(tiny_gpt2, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    source = f"model=gpt2 model.name={tiny_gpt2} model.context=null text=files text.files={text_file} threads=1 "
    source += "stream.batch_size=64 stream.round_tokens=512 sites.patterns=[blocks.1.hook_resid_post]"
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "my_module.py").write_text("\n".join(blocks), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(base, "KINDS", dict(base.KINDS))
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    ran = set()
    for line in lines():
        _, command, *arguments = shlex.split(line.removeprefix("PYTHONPATH=. "), comments=True)
        if (
            command not in (*SIZES, "report")
            or "out=" not in line
            or "-m" in arguments
            or any(hub in line for hub in HUB)
        ):
            continue
        small = shlex.split(f"{source if command == 'train' else ''} {SIZES.get(command, '')}")
        try:
            main([command, *latest(*arguments, *small)])
        except SystemExit as stopped:
            pytest.fail(f"{line}: exit code {stopped.code}\n{capsys.readouterr().err}")
        ran.add(command)
    torch.set_num_threads(threads)
    assert ran == {*SIZES, "report"}
    assert list(tmp_path.glob("runs/*/report/index.html"))
    assert "mine" in (tmp_path / "runs/mine/evaluation.csv").read_text()  # of the baseline that is given last
