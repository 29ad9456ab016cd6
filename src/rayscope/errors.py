"""CommandError: what a user can mend, in one line; and which exceptions from below a command are that."""

from collections.abc import Mapping
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from rayscope.disks import in_words
from rayscope.escapes import one_line

OUT_OF_MEMORY = (  # what torch says in a plain RuntimeError
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class CommandError(Exception):
    """One line for the user, `rayscope: ...` on stderr; the command ends with exit code 1."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def explain(
    error: BaseException, places: Mapping[str, Path] | None = None, resumes: bool = False
) -> CommandError | None:
    """The one line for an error that the user can mend; None for any other, which is a bug.

    places, resumes: see `disks.in_words`.
    """
    if isinstance(error, CommandError):
        return error
    of_hydra = isinstance(error, HydraException | OmegaConfBaseException)
    if of_hydra and error.__cause__ and (known := explain(error.__cause__, places, resumes)):
        return known  # what hydra called says it better than hydra
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and "not in struct" in str(error):
        return CommandError(f"option {error.full_key} is missing here; it was taken out by ~ or by a file of your own")
    if isinstance(error, MissingMandatoryValue):
        return CommandError(f"{error.full_key} is not set; give {error.full_key}=...")
    if is_out_of_memory(error):
        return CommandError(
            "out of memory; lower stream.batch_size, stream.round_tokens or latents, train fewer dictionaries or "
            f"sites at once, or give another device= ({str(error) or type(error).__name__:.120})"
        )
    if of_hydra:
        return CommandError(str(error).strip().split("\n")[0])
    if isinstance(error, OSError):
        return CommandError(in_words(error, places or {}, resumes) or type(error).__name__)
    if isinstance(error, ValueError):
        return CommandError(str(error) or type(error).__name__)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, numpy (a MemoryError too), or torch, whose CPU allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
