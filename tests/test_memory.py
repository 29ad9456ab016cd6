"""Freed memory is found again, not asked of the kernel again."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")

CODE = """
import resource, sys, torch
from rayscope.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(8):  # the heap settles
    torch.ones(2**24)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not HUGE.is_file() or "[never]" in HUGE.read_text(),
    reason="for glibc, and a kernel that has huge pages",
)
def test_large_tensors_fault_no_pages_after_the_first_few():
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True).stdout)

    # 64 MB are 16,384 pages, or 32 huge ones; a kernel short of memory may take pages back at any time, so the best of
    # three
    assert min(faults("kept") for _ in range(3)) < 100 < min(faults("given back") for _ in range(3))
