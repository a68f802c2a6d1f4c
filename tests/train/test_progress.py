"""What a run shows while it trains."""

from __future__ import annotations

import pytest

from tf_largebatch.train import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def train(callback, clock):
    """Two updates an epoch, ten seconds each."""
    for epoch in range(2):
        callback.on_epoch_begin(epoch)
        for batch in range(2):
            clock[0] += 10
            callback.on_train_batch_end(batch, {"loss": 2.0, "accuracy": 0.5, "perturbation": 3.0})
        logs = {"loss": 1.5, "accuracy": 0.625, "val_loss": 1.25, "val_accuracy": 0.75, "noise_scale": 305.08}
        callback.on_epoch_end(epoch, logs)
    callback.on_train_end()


def test_one_line_an_epoch_in_a_file(clock, capsys):
    train(progress.Progress(200, 2, 200, rewrite=False), clock)
    values = "loss 1.5000, accuracy 0.6250, val loss 1.2500, val accuracy 0.7500, noise scale 305; 20.0 s"
    assert capsys.readouterr().out.splitlines() == [
        f"epoch 1/200, 2 updates: {values}, 1:06:20 left",
        f"epoch 2/200, 4 updates: {values}, 1:06:00 left",
    ]


def test_one_line_is_rewritten_on_a_terminal(clock, capsys):
    train(progress.Progress(10, 2, 2, rewrite=True), clock)
    printed = capsys.readouterr().out
    assert printed.endswith("\n") and printed.count("\n") == 1
    lines = [line.rstrip() for line in printed.split("\r")]
    assert lines[1] == "epoch 1/10, update 1/20: loss 2.0000, accuracy 0.5000"
    # The process stops after epoch 2 of 10.
    assert lines[2] == "epoch 1/10, update 2/20: loss 2.0000, accuracy 0.5000, 0:20 left"
    assert lines[4].endswith("accuracy 0.5000, val loss 1.2500, val accuracy 0.7500, 0:10 left")
    assert lines[-1].endswith("noise scale 305; 20.0 s")
