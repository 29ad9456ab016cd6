"""The quick part of `make faults`: a run that is killed at the first of each of its file operations,
and what is said of broken inputs.
"""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_is_silent():
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "faults", "quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "wrong: 0" in done.stdout
