"""The default learning rate: its values, who is told it, and what a checkpoint makes of it."""

import math
from pathlib import Path

import pytest

from rayscope.dictionaries import AbsTopK, TopK, load
from rayscope.dictionaries.learned import base
from rayscope.dictionaries.learned.rate import default_rate
from rayscope.streams.planted import World
from rayscope.training.checkpoint import CHECKPOINT
from rayscope.training.train import train

BATCH, STEPS = 64, 20


@pytest.mark.parametrize(
    ("latents", "steps", "rate"),
    [
        (2048, 1000, 2e-3),  # 2 / steps
        (2048, 100, 6e-3),  # at most
        (2**14, 8000, 2.5e-4),
        (2**14, 20_000, 2e-4),  # the rule by width
        (2**12, math.inf, 4e-4),
        (2, math.inf, 6e-3),
    ],
)
def test_by_latents_and_steps(latents, steps, rate):
    assert default_rate(latents, steps) == pytest.approx(rate, rel=1e-12)


def learn(folder: Path, **dictionaries) -> None:
    stream = World(32, 16, 3).stream("train", STEPS * BATCH, BATCH)
    options = {"checkpoint_steps": 10, "checkpoint_seconds": math.inf, "log_every": 0}
    train(stream, {stream.sites[0]: dictionaries}, folder, **options)


def test_a_rate_that_is_not_given_follows_the_run_s_length_and_is_said_and_saved(tmp_path, capsys, one_thread):
    named = {"topk": TopK(16, 64, 2), "abstopk": AbsTopK(16, 1024, 2), "given": TopK(16, 64, 2, lr=1e-4)}
    assert named["abstopk"].lr == pytest.approx(8e-4)  # of an endless run
    learn(tmp_path, **named)
    assert [d.lr for d in named.values()] == [6e-3, 6e-3, 1e-4]
    assert "training: lr 0.006 (topk, abstopk); lr 0.0001 (given)" in capsys.readouterr().err
    named["topk"].save(tmp_path / "saved", {})
    saved = load(tmp_path / "saved")
    assert isinstance(saved, TopK)
    assert saved.lr == 6e-3
    saved.train_for(1000)
    assert saved.lr == 6e-3  # its own, as if given: what it is tuned at later


def test_the_checkpoint_of_a_run_with_another_default_is_named_and_left(tmp_path, monkeypatch, one_thread):
    with monkeypatch.context() as before:
        before.setattr(base, "default_rate", lambda latents, steps=math.inf: 8e-4)
        learn(tmp_path, topk=TopK(16, 64, 2))
    with pytest.raises(
        ValueError, match=r"is of another run \(.*topk.*lr: 0.0008 -> 0.006\); remove it to begin again"
    ):
        learn(tmp_path, topk=TopK(16, 64, 2))
    assert (tmp_path / CHECKPOINT).is_file()
    learn(tmp_path, topk=TopK(16, 64, 2, lr=8e-4))  # as it was
