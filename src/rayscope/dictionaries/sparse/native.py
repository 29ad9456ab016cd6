"""select.c and refine.c, compiled for this machine's processor on first use. Where that cannot be, PyTorch does the
same, slower.

The library lies in the user's cache folder under a name made of the source, the compiler and the processor; one that
somebody else may have put there is never loaded. A run's environment.json says whether it was there. RAYSCOPE_NATIVE=0
leaves it out, CC names another compiler.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from rayscope.files import cache_folder, sweep, whole_file

FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno")
POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
FUNCTIONS = {
    "largest_of_rows": (INT, [POINTER, POINTER, POINTER, LONG, LONG, LONG, LONG, INT, INT, INT]),
    "count_above": (None, [POINTER, POINTER, FLOAT, POINTER, LONG, LONG, INT, INT]),
    "list_above": (None, [POINTER, POINTER, FLOAT, POINTER, POINTER, POINTER, LONG, LONG, INT, INT]),
    "dots_of_pairs": (None, [POINTER, POINTER, POINTER, POINTER, POINTER, LONG, LONG, INT]),
    "refine_codes": (INT, [POINTER] * 7 + [LONG] * 5 + [INT, INT]),
}


@cache
def library() -> ctypes.CDLL | None:
    """The functions of both; None if there is no C compiler, or it fails."""
    command = shlex.split(os.environ.get("CC", "cc"))
    unwanted = os.environ.get("RAYSCOPE_NATIVE") == "0" or sys.platform == "win32"
    if unwanted or not command or shutil.which(command[0]) is None:
        return None
    try:
        loaded = found(command)
    except (OSError, subprocess.SubprocessError):
        return None
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def found(command: list[str]) -> ctypes.CDLL:
    """The library, built if need be: in a cache folder, or if others may write to those,
    in a folder of this process alone.

    Raises OSError or SubprocessError if it cannot be made.
    """
    name = name_of(command)
    for root, inside in caches():
        with suppress(OSError), trusted(root, inside) as folder:
            place = root / inside / name
            with suppress(OSError):  # there is none, it is broken, or somebody else's
                return load(place, folder)
            build(command, place)
            return load(place, folder)
    with tempfile.TemporaryDirectory(prefix="rayscope-") as own, trusted(Path(own)) as folder:
        build(command, Path(own) / name)
        return load(Path(own) / name, folder)  # what is loaded may be removed


def source() -> bytes:
    """One file of both: refine.c uses what select.c defines."""
    folder = files("rayscope.dictionaries.sparse")
    return b"".join(folder.joinpath(name).read_bytes() for name in ("select.c", "refine.c"))


def name_of(command: list[str]) -> str:
    """The file's name, for this source, compiler and processor."""
    version = subprocess.run([*command, "--version"], capture_output=True, timeout=60, check=True).stdout
    parts = (source(), version, " ".join((*command, *FLAGS, threading_flag())).encode(), processor().encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return f"select-{digest[:24]}.so"


def caches() -> list[tuple[Path, str]]:
    """(folder, folder in it): `native` in the cache folder, and one of the user's own that holds nothing else.

    The cache folder of the user, unlike $RAYSCOPE_CACHE, is made for its owner alone if it is not there.
    """
    own = Path(platformdirs.user_cache_dir())
    place = (cache_folder(), "native") if os.environ.get("RAYSCOPE_CACHE") else (own, "rayscope/native")
    return [place, (own, "rayscope-native")] if own.is_absolute() else [place]


@contextmanager
def trusted(root: Path, inside: str = "") -> Iterator[int]:
    """A descriptor of the folder root/inside, made if missing, in which nobody but this user and root can have written.

    Each folder from the root on must be theirs and closed to other writers. A sticky /tmp does not suffice: there,
    others may make a folder first. Raises OSError otherwise.
    Whatever the umask, what is made in the root is for its owner alone.
    """
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = None
        for part in (str(root.resolve()), *Path(inside).parts):
            if folder is not None:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=folder)
            folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            stack.callback(os.close, folder)
            check_owner(folder, part)
        yield folder  # type: ignore[misc]


def load(place: Path, folder: int) -> ctypes.CDLL:
    """Loads the file, which nobody else can have written, from its open folder, and on Linux by its own descriptor:
    what was checked is what is loaded, wherever the path leads by then. The loader knows it by that descriptor, so it
    stays open.

    Raises OSError if it is not there, is a link, is somebody else's or broken.
    """
    file = os.open(place.name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder)
    try:
        check_owner(file, place.name)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(f"{place} is not a file")
        opened = Path(f"/proc/self/fd/{file}")
        return ctypes.CDLL(str(opened if opened.exists() else place))
    except OSError:
        os.close(file)
        raise


def check_owner(descriptor: int, name: str) -> None:
    there = os.fstat(descriptor)
    if there.st_uid not in (os.geteuid(), 0) or there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{name}: others than its owner may have written to it")


def build(command: list[str], target: Path) -> None:
    """Compiles to the target, whole or not at all, so that processes may build it at once.

    Raises OSError or SubprocessError if it cannot be made.
    """
    sweep(target.parent, age=3600)
    with tempfile.TemporaryDirectory(prefix="rayscope-") as work:
        code, compiled, linked = (Path(work) / f"select.{end}" for end in ("c", "o", "so"))
        code.write_bytes(source())
        run([*command, *FLAGS, threading_flag(), "-c", code, "-o", compiled])
        run([*command, "-shared", compiled, "-o", linked])  # without -fopenmp: torch's own OpenMP is the one to use
        with whole_file(target) as file:
            os.fchmod(file.fileno(), 0o700)  # whatever the umask
            file.write(linked.read_bytes())


def run(command: Sequence[str | Path]) -> None:
    subprocess.run(command, capture_output=True, timeout=120, check=True)


def threading_flag() -> str:
    """OpenMP's threads where torch has brought GNU's into this process (a second one would fight it for the cores)."""
    has_openmp = hasattr(ctypes.CDLL(None), "GOMP_parallel")
    return "-fopenmp" if has_openmp else "-fopenmp-simd"  # its vector loops in any case


def processor() -> str:
    """What -march=native compiles for: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features"))))


def block_width(columns: int, k: int) -> int:
    """Columns of a block in which largest_of_rows looks for each row's k:
    as many as leave over k blocks to choose from.
    """
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
    """(counts_C, places, scores) of the products + bias above the floor:
    place c * L + l, rising. None: does not fit.
    """
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


def refine_codes(
    x_ND: Tensor, W_LD: Tensor, candidates_NS: Tensor, pre_NS: Tensor, own_N: Tensor, times: int, signed: bool
) -> tuple[Tensor, Tensor] | None:
    """(indices, values), both (N, K), of `refine.refine_codes`. None: does not fit."""
    x_ND, W_LD, pre_NS = x_ND.contiguous(), W_LD.contiguous(), pre_NS.contiguous()
    if x_ND.dtype != torch.float32 or not fits(x_ND, W_LD, pre_NS):
        return None
    candidates_NS, own_N = candidates_NS.contiguous(), own_N.contiguous()
    (N, S), K = candidates_NS.shape, int(own_N.max()) if len(own_N) else 0
    indices_NK, values_NK = torch.empty(N, K, dtype=torch.int64), torch.empty(N, K)
    tensors = x_ND, W_LD, candidates_NS, pre_NS, own_N, indices_NK, values_NK
    pointers, sizes = (tensor.data_ptr() for tensor in tensors), (N, x_ND.shape[1], S, K, times)
    if library().refine_codes(*pointers, *sizes, torch.get_num_threads(), signed):  # type: ignore[union-attr]
        raise MemoryError("no memory for refined codes")
    return indices_NK, values_NK
