#!/usr/bin/env bash
# Builds a wheel, installs it into a clean environment, and runs a small demo with it outside the repository.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export RAYSCOPE_CACHE="$work/cache"

mkdir "$work/source" # what setuptools left in the checkout's build/ would get into the wheel
cp -r "$root"/{pyproject.toml,README.md,LICENSE,conf,src} "$work/source"
"$root/.venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work" "$work/source"
rm -r "$work/source"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet --constraint "$root/constraints.txt" "$work"/rayscope-*.whl

cd "$work"
venv/bin/rayscope demo text.standard_library=false 'text.packages=[networkx,scipy]' tokens=8192 latents=128 \
    stream.batch_size=256 stream.round_tokens=4096 training.snapshots=2 training.calibration_tokens=2048 \
    evaluation.tokens=2048 evaluation.splice_tokens=1024 evaluation.draws=20 baselines.fit_tokens=4096 \
    features.tokens=4096 features.min_count=5 features.most_frequent=10 features.spaced=5 > demo.txt
for output in report/index.html evaluation.csv token_features.csv; do
    test -s "runs/demo/$output" || { echo "wheel-check: the demo made no $output" >&2; exit 1; }
done
venv/bin/python -c '
import sys, rayscope, rayscope.conf
for module in (rayscope, rayscope.conf):
    assert module.__file__.startswith(sys.prefix), f"{module.__file__} is not the installed package"
from rayscope.text import Prose
assert len(list(Prose().documents())) == 159
from rayscope.dictionaries.sparse import native
assert native.source()
'
echo "wheel-check: the installed package ran the demo"
