"""select.c, compiled for this machine's processor on first use. Where that cannot be, PyTorch does the same, slower.

The library lies in the user's cache folder under a name made of the source, the compiler and the processor; a run's
environment.json says whether it was there. RAYSCOPE_NATIVE=0 leaves it out, CC names another compiler.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno")
POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
FUNCTIONS = {
    "largest_of_rows": (INT, [POINTER, POINTER, POINTER, LONG, LONG, LONG, LONG, INT, INT, INT]),
    "count_above": (None, [POINTER, POINTER, FLOAT, POINTER, LONG, LONG, INT, INT]),
    "list_above": (None, [POINTER, POINTER, FLOAT, POINTER, POINTER, POINTER, LONG, LONG, INT, INT]),
    "dots_of_pairs": (None, [POINTER, POINTER, POINTER, POINTER, POINTER, LONG, LONG, INT]),
}


@cache
def library() -> ctypes.CDLL | None:
    """The functions of select.c; None where there is no C compiler, or it fails."""
    command = shlex.split(os.environ.get("CC", "cc"))
    if os.environ.get("RAYSCOPE_NATIVE") == "0" or not command or shutil.which(command[0]) is None:
        return None
    try:
        path = place(command)
        try:
            loaded = ctypes.CDLL(str(path if path.is_file() else build(command, path)))
        except OSError:  # what is there is broken
            loaded = ctypes.CDLL(str(build(command, path)))
    except (OSError, subprocess.SubprocessError):
        return None
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def source() -> bytes:
    return files("rayscope.dictionaries").joinpath("select.c").read_bytes()


def place(command: list[str]) -> Path:
    """Where the library for this source, compiler and processor is, or is to be."""
    version = subprocess.run([*command, "--version"], capture_output=True, timeout=60, check=True).stdout
    parts = (source(), version, " ".join((*command, *FLAGS, threading_flag())).encode(), processor().encode())
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    cache_home = os.environ.get("RAYSCOPE_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (Path.home() raises where there is none)
    return Path(cache_home) / "rayscope" / "native" / f"select-{name}.so"


def build(command: list[str], target: Path) -> Path:
    """Compiles to the target, whole or not at all, so that processes may build it at once.

    Raises OSError or SubprocessError where it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as work:
        code, compiled, linked = (Path(work) / f"select.{end}" for end in ("c", "o", "so"))
        code.write_bytes(source())
        run([*command, *FLAGS, threading_flag(), "-c", code, "-o", compiled])
        run([*command, "-shared", compiled, "-o", linked])  # without -fopenmp: torch's own OpenMP is the one to use
        with linked.open("rb") as file:
            os.fsync(file.fileno())
        linked.rename(target)
    return target


def run(command: Sequence[str | Path]) -> None:
    subprocess.run(command, capture_output=True, timeout=120, check=True)


def threading_flag() -> str:
    """OpenMP's threads where torch has brought GNU's into this process (a second one would fight it for the cores)."""
    has_openmp = sys.platform != "win32" and hasattr(ctypes.CDLL(None), "GOMP_parallel")
    return "-fopenmp" if has_openmp else "-fopenmp-simd"  # its vector loops in any case


def processor() -> str:
    """What -march=native compiles for: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features"))))


def block_width(columns: int, k: int) -> int:
    """Columns of a block in which largest_of_rows looks for each row's k: as many as leave over k blocks to choose from."""
    return next((width for width in (64, 32) if columns >= 2 * k * width), 1)


def fits(*tensors: Tensor) -> bool:
    """Whether select.c reads these tensors (the first of them in bfloat16 too), and is there."""
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors[1:])
        and tensors[0].device.type == "cpu"
        and tensors[0].dtype in (torch.bfloat16, torch.float32)
        and tensors[0].is_contiguous()
        and library() is not None
    )


def largest_of_rows(products_CL: Tensor, bias_L: Tensor, k: int, absolute: bool) -> Tensor | None:
    """indices_Ck of the k greatest products + bias (absolute: of their absolute values) of each row, in no order.

    None where it does not fit, and PyTorch's topk has to do it.
    """
    if not fits(products_CL, bias_L):
        return None
    (rows, columns), width = products_CL.shape, block_width(products_CL.shape[1], k)
    chosen_Ck = torch.empty(rows, k, dtype=torch.int64)
    half, threads = products_CL.dtype == torch.bfloat16, torch.get_num_threads()
    pointers = products_CL.data_ptr(), bias_L.data_ptr(), chosen_Ck.data_ptr()
    if library().largest_of_rows(*pointers, rows, columns, k, width, threads, half, absolute):  # type: ignore[union-attr]
        raise MemoryError("no memory for the scan of pre-activations")
    return chosen_Ck


def above(products_CL: Tensor, bias_L: Tensor, floor: float) -> tuple[Tensor, ...] | None:
    """(counts_C, places, scores) of the products + bias above the floor: place c * L + l, rising. None: does not fit."""
    if not fits(products_CL, bias_L):
        return None
    (rows, columns), half = products_CL.shape, products_CL.dtype == torch.bfloat16
    threads, compiled = torch.get_num_threads(), library()
    counts_C = torch.empty(rows, dtype=torch.int64)
    inputs = products_CL.data_ptr(), bias_L.data_ptr(), floor
    compiled.count_above(*inputs, counts_C.data_ptr(), rows, columns, threads, half)  # type: ignore[union-attr]
    starts_C = counts_C.cumsum(0) - counts_C
    total = int(counts_C.sum())
    places, scores = torch.empty(total, dtype=torch.int64), torch.empty(total)
    outputs = starts_C.data_ptr(), places.data_ptr(), scores.data_ptr()
    compiled.list_above(*inputs, *outputs, rows, columns, threads, half)  # type: ignore[union-attr]
    return counts_C, places, scores


def dots_of_pairs(x_ND: Tensor, W_LD: Tensor, indices_M: Tensor, offsets: Tensor) -> Tensor | None:
    """dots_M = x_n . W_l of the pairs n, indices_M[offsets[n] : offsets[n + 1]]. None: does not fit."""
    whole = indices_M.dtype == offsets.dtype == torch.int64
    if not whole or x_ND.dtype != torch.float32 or not fits(x_ND, W_LD):
        return None
    indices_M, offsets, dots_M = indices_M.contiguous(), offsets.contiguous(), torch.empty(len(indices_M))
    pointers = (tensor.data_ptr() for tensor in (x_ND, W_LD, indices_M, offsets, dots_M))
    library().dots_of_pairs(*pointers, len(x_ND), x_ND.shape[1], torch.get_num_threads())  # type: ignore[union-attr]
    return dots_M
