#!/usr/bin/env bash
# Builds a wheel, installs it into a clean environment, and runs a small demo outside the repository.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$root/.venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work" "$root"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet --constraint "$root/constraints.txt" "$work"/rayscope-*.whl
cd "$work"
RAYSCOPE_CACHE="$work/cache" "$work/venv/bin/rayscope" demo tokens=20480 latents=256 stream.round_tokens=8192 \
    evaluation.tokens=4096 evaluation.splice_tokens=2048 features.tokens=4096 features.min_count=10 baselines.fit_tokens=8192
test -s runs/demo/report/index.html
