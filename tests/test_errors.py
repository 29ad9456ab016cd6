"""What is the user's to mend is one line; what is not stays what it was."""

import errno
import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from rayscope.cli import command_line
from rayscope.errors import CommandError, explain, one_line


def raised(call) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
        call()
    return caught.value


def test_an_error_survives_pickling():
    again = pickle.loads(pickle.dumps(CommandError("k=999 exceeds\n the 128 latents")))
    assert (type(again), str(again)) == (CommandError, "k=999 exceeds the 128 latents")


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\n  b\r\tc", "a b c"), ("red \x1b[31m", r"red \x1b[31m"), ("\u202egnp", r"\u202egnp"), ("日本 é", "日本 é")],
)
def test_one_line(text, line):
    assert one_line(text) == line


def test_out_of_memory_says_what_to_lower():
    errors = [
        MemoryError(),
        raised(lambda: np.zeros(2**62, dtype=np.int8)),
        raised(lambda: torch.empty(2**60, dtype=torch.uint8)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ]
    for error in errors:
        said = str(explain(error))
        for option in ("stream.batch_size", "stream.round_tokens", "latents", "device="):
            assert option in said, error
        assert "\n" not in said


def test_what_is_known_and_what_is_not():
    assert str(explain(ValueError("a\nb"))) == "a b"
    assert "disk of /x/y" in str(explain(OSError(errno.ENOSPC, "No space left", "/x/y")))
    assert str(explain(OSError(errno.EACCES, "Permission denied", "/x/y"))) == "/x/y: permission denied"
    assert str(explain(raised(lambda: OmegaConf.create({"a": "???"}).a))) == "a is not set; give a=..."
    for bug in (RuntimeError("shapes do not match"), KeyError("sha256"), ZeroDivisionError()):
        assert explain(bug) is None


def test_a_bug_keeps_its_traceback(monkeypatch, capsys, tmp_path):
    def broken(config, folder):
        raise KeyError("sha256")

    monkeypatch.setitem(command_line.COMMANDS, "sites", broken)
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["sites", f"out={tmp_path}"])
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert said.startswith("rayscope: this is a bug in rayscope; please report it")
    assert "KeyError: 'sha256'" in said
    assert "in broken" in said
