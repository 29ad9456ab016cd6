"""What several test files share: a tiny GPT-2 with its own tokenizer, a small text,
and a cache folder of the session's own.
"""

import signal
from pathlib import Path

import pytest
import torch

from folders import contents, make, set_aside, start
from rayscope.model import LanguageModel, load
from rayscope.text import Files, PackedText, pack
from toys import save_gpt2, write_text


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """RAYSCOPE_CACHE, so that no test reads or writes the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("RAYSCOPE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def interrupted():
    """Ctrl-C stops a command, as it does in a terminal: a shell starts what runs in the background without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def one_thread():
    """Small operations on two threads wait for each other for seconds where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.fixture(scope="session")
def source(tiny_gpt2: Path, text_file: Path) -> list[str]:
    """The arguments of a command that reads the toy model and text."""
    return [
        "model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files", f"text.files={text_file}",
        "stream.batch_size=64", "stream.round_tokens=512",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def model(tiny_gpt2: Path) -> LanguageModel:
    return load(str(tiny_gpt2))


@pytest.fixture(scope="session")
def packed(text_file: Path, model: LanguageModel, cache: Path) -> PackedText:
    return pack(Files(str(text_file)), model.tokenizer, model.context)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A finished run."""
    make(tmp_path / "old", 1)
    return tmp_path / "old"


@pytest.fixture
def refused():
    """Starts that must be refused, with the reason; the folder is as it was."""

    def refuse(folder: Path, said: str, **options) -> str:
        before = contents(folder)
        with pytest.raises(ValueError, match=said) as stopped, start(folder, **options):
            raise AssertionError("it began")
        assert contents(folder) == before
        assert set_aside(folder) == []
        assert "\n" not in str(stopped.value)
        return str(stopped.value)

    return refuse
