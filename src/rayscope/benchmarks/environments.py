"""One virtual environment a peer, built from the package registry when first asked for: peers pin what we do not."""

import os
import subprocess
import sys
from pathlib import Path

from rayscope.console import say
from rayscope.dictionaries.sparse.native import trusted
from rayscope.files import cache_folder, write_whole

TORCH = "torch==2.13.0"  # before the rest: with it in place pip has no reason to fetch another build
COMMON = ["einops", "safetensors", "tqdm", "transformers==5.23.0", "datasets==5.2.0"]
PACKAGES: dict[str, tuple[list[str], list[str]]] = {  # peer: (without their dependencies, with them)
    "sparsify": (["eai-sparsify==1.3.3"], [*COMMON, "accelerate", "natsort", "schedulefree", "simple-parsing"]),
    "dictionary_learning": (["dictionary-learning==0.1.0"], COMMON),
    "saelens": ([], ["sae-lens==6.54.12"]),
}
OURS = ("transformer_lens",)  # a dependency of rayscope's own
PEERS = (*PACKAGES, *OURS)


def python_of(peer: str | None, folder: Path | None = None) -> Path:
    """The interpreter that runs a peer's worker (None: rayscope's), built in `folder` where it is not there yet.

    Raises ValueError if pip fails, or if others may write to that folder, and so have this user run what is theirs.
    """
    if peer is None or peer in OURS:
        return Path(sys.executable)
    bare, whole = PACKAGES[peer]
    root = folder or cache_folder() / "peers"
    place = root / peer
    python, stamp = place / "bin/python", place / "installed"
    wanted = "\n".join([TORCH, *bare, *whole])
    try:
        with trusted(root, peer):
            pass
    except OSError as error:
        raise ValueError(
            f"peers: {place}: {error.strerror or error}; mend that, or give another environments="
        ) from None
    if not (python.is_file() and stamp.is_file() and stamp.read_bytes() == wanted.encode()):
        say(f"benchmark: installing {peer} into {place} (some minutes, once)")
        call([sys.executable, "-m", "venv", "--clear", str(place)])
        for packages in ([TORCH], ["--no-deps", *bare] if bare else [], whole):
            if packages:
                call([str(python), "-m", "pip", "install", "--quiet", *packages])
        write_whole(stamp, wanted)
    return python


def call(command: list[str]) -> None:
    # PYTHONPATH would let rayscope's packages shadow the peer's
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise ValueError(f"peers: {' '.join(command[1:])} failed: {said.splitlines()[-1] if said else 'nothing said'}")
