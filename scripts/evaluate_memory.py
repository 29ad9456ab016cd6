"""Peak memory of `rayscope evaluate baselines=all` at width 3072 with 24,576 latents, for two numbers of fit tokens.

scripts/evaluate_memory.py FOLDER [FIT_TOKENS ...]: makes a GPT-2 small and a TopK dictionary with random weights in
FOLDER, and prints one line per number of fit tokens (8,192 and 24,576 unless given). Nothing is downloaded;
a quarter of an hour on two cores.
"""

import os
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from rayscope.dictionaries import TopK

SITE, LATENTS, K = "blocks.6.mlp.hook_post", 24_576, 32
OPTIONS = (
    "threads=1 device=cpu model=gpt2 text=docs text.packages=[] baselines=all stream.batch_size=2048 "
    "stream.round_tokens=8192 "
    f"latents={LATENTS} evaluation.tokens=1024 evaluation.splice_tokens=256 evaluation.validation_tokens=1024"
).split()


def make(folder: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config()  # GPT-2 small's
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(str(files("rayscope") / "assets/tiny")).save_pretrained(folder / "model")
    TopK(4 * config.n_embd, LATENTS, K).save(folder / "dictionaries/topk", {"site": SITE})


def main(folder: Path, sizes: list[int]) -> None:
    if not (folder / "dictionaries").is_dir():
        make(folder)
    for fit_tokens in sizes:
        options = [f"model.name={folder / 'model'}", f"dictionaries.folder={folder / 'dictionaries'}"]
        options += [
            f"out={folder / str(fit_tokens)}",
            f"cache={folder / 'cache'}",
            f"baselines.fit_tokens={fit_tokens}",
        ]
        started = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "rayscope", "evaluate", *OPTIONS, *options])
        _, status, used = os.wait4(child.pid, 0)
        if status:
            sys.exit("rayscope evaluate failed")
        seconds = time.monotonic() - started
        print(f"fit tokens {fit_tokens:,}: peak {used.ru_maxrss / 1024:,.0f} MiB, {seconds:,.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]] or [8192, 24_576])
