"""The whole line on a GPT-2 small of the real shape, its weights random,
with GPT-2's own tokenizer where that is at hand.
"""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rayscope.cli.command_line import main

GPT2 = Path(__file__).parents[2] / "shared/gpt2_tokenizer"  # not in the repository: alongside it, or nowhere
TOKENIZER = "gpt2's" if GPT2.is_dir() else "toy"


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [TOKENIZER])
def test_whole_line_on_gpt2_small(tmp_path, text_file, tiny_gpt2, tokenizer):
    folder = tmp_path / "gpt2"
    shutil.copytree(tiny_gpt2 if tokenizer == "toy" else GPT2, folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).half().save_pretrained(folder)
    run = tmp_path / "run"
    main(
        f"demo model=gpt2 model.name={folder} model.context=64 text=files text.files=[{text_file}] out={run} "
        "dictionaries=topk baselines=pca training.snapshot_names=null training.snapshots=2 latents=1024 k=8 "
        "stream.batch_size=256 stream.round_tokens=1024 tokens=1024 training.calibration_tokens=256 "
        "baselines.fit_tokens=1024 evaluation.tokens=256 evaluation.splice_tokens=128 evaluation.draws=50 "
        "features.tokens=512 features.min_count=2 features.most_frequent=5 features.spaced=5".split()
    )
    table = pd.read_csv(run / "evaluation.csv")
    assert set(table["site"]) == {"blocks.6.hook_resid_post", "blocks.6.mlp.hook_post"}
    identity = table[(table["dictionary"] == "identity") & (table["metric"].isin(["fvu", "dce", "kl"]))]
    assert len(identity) == 12
    assert (identity["value"] == 0).all()
    names = pd.read_csv(run / "token_features.csv")["token"].astype(str)
    assert names.str.startswith(" ").any()  # GPT-2's own tokens, their spaces kept
    page = (run / "report/index.html").read_text()
    assert [name for name in {*table["site"], *table["dictionary"]} if name not in page] == []
