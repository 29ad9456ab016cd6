"""Stop signals, in this process and in one of their own."""

import os
import signal
import threading
import time
from contextlib import ExitStack

import pytest

from rayscope import stopping as module
from rayscope.cli.command_line import main
from rayscope.cli.commands import COMMANDS
from rayscope.stopping import SIGNALS, Stopped, deferred, stopping
from rayscope.text import packing


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.001)  # the handler runs between two instructions


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_unwinds_the_block_and_handlers_come_back(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    closed = []

    def work():
        with stopping(), ExitStack() as stack:
            stack.callback(closed.append, number)
            send(number)

    with pytest.raises(Stopped) as stopped:
        work()
    assert closed == [number]
    assert stopped.value.code == 128 + number
    assert signal.Signals(number).name in str(stopped.value)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_stop_is_no_error_though_a_library_fails_as_it_cleans_up(monkeypatch, capsys):
    def broken(config, folder) -> None:
        try:
            send(signal.SIGTERM)
        finally:
            raise AttributeError("half-made")

    monkeypatch.setitem(COMMANDS, "sites", broken)
    with pytest.raises(SystemExit) as ended:
        main(["sites"])
    assert ended.value.code == 128 + signal.SIGTERM
    said = capsys.readouterr().err.splitlines()
    assert said == ["rayscope: stopped; what was finished is kept, the same command does the rest (SIGTERM)"]


def test_the_first_is_noted_and_a_second_stops_at_once(monkeypatch):
    with stopping(), deferred() as asked:
        assert asked.number is None
        send(signal.SIGTERM)
        send(signal.SIGINT)  # the same stop, passed on twice
        assert asked.number == signal.SIGTERM
        monkeypatch.setattr(module, "TOGETHER", 0.0)
        with pytest.raises(Stopped) as stopped:
            send(signal.SIGINT)
        assert stopped.value.number == signal.SIGINT


def test_what_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(), deferred() as asked:
            send(signal.SIGHUP)
        assert asked.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_change_nothing():
    handlers = []

    def work():
        with stopping(), deferred() as asked:
            handlers.append((signal.getsignal(signal.SIGTERM), asked.number))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [(before, None)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_command_stopped_while_it_packs_leaves_nothing(tiny_gpt2, text_file, tmp_path, monkeypatch, capsys, number):
    inner = packing.batches

    def batches(*args, **kwargs):
        for found in inner(*args, **kwargs):
            yield found
            send(number)

    monkeypatch.setattr(packing, "batches", batches)
    given = ["model=gpt2", f"model.name={tiny_gpt2}", "model.context=null", "text=files", f"text.files={text_file}"]
    with pytest.raises(SystemExit) as stopped:
        main(["train", *given, f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'run'}"])
    assert stopped.value.code == 128 + number
    said = capsys.readouterr().err.strip().splitlines()
    name = signal.Signals(number).name
    assert said == [f"rayscope: stopped; what was finished is kept, the same command does the rest ({name})"]
    assert list((tmp_path / "cache" / "text").iterdir()) == []
    assert not (tmp_path / "run").exists()
