"""python -m tf_largebatch.batch_size: what it finds, leaves and refuses."""

from __future__ import annotations

import json
import math
import types

import keras
import pytest
from absl import flags
from train_runs import add_networks

from tf_largebatch import batch_size
from tf_largebatch.plots.batch_sizes import plot_batch_sizes
from tf_largebatch.train.optimizers import OptimizerConfig
from tf_largebatch.training.memory_limit import BatchMemory, affine


def program(*arguments):
    values = flags.FlagValues()
    batch_size.define_flags(values)
    values(["program", *arguments])
    return batch_size.main(["program"], values)


def test_the_program(tmp_path, capsys, monkeypatch):
    add_networks(monkeypatch)
    options = "--model=linear", "--optimizer=sgd", "--batch_size=64", "--updates=4", "--norm_examples=16"
    assert program(*options, f"--output_dir={tmp_path}") == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "batch_size.json").read_text())
    assert printed.startswith("Gradient noise scale: ") and "At once fit: about " in printed
    assert f"Try --batch_size={found['advised']}. " in printed and f"Output: {tmp_path}" in printed
    assert found["backend"] == keras.backend.backend() and found["run"]["updates"] == [1, 2, 3, 4]
    assert found["memory"]["of_example"] > 0 and found["memory"]["largest"] == 1024
    assert [row["batch_size"] for row in found["batch_sizes"]] == [16, 32, 64, 128, 256, 512, 1024]
    assert (tmp_path / "batch_size.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--updates=1"], "updates must be 2 or more; received updates=1"),
        (["--seconds=0"], "seconds must be above 0"),
        (["--batch_size=1"], "batch_size must be 2 or more, to tell noise from gradient"),
        (["--batch_size=2000"], "batch_size must be at most the 1437 training images"),
        (["--optimizer=adam", "--eta=1"], "eta must be left out with optimizer=adam"),
        (["--model=resnet8", "--weights=imagenet"], "weights must be left out with model=resnet8"),
    ],
)
def test_what_does_not_apply_is_refused(arguments, message, capsys):
    assert program(*arguments) == 1
    assert message in capsys.readouterr().err


def test_rows():
    memory = BatchMemory(256, 0.0, 1.0, 256.0, "")
    optimizer = OptimizerConfig(scaling="linear", base_learning_rate=0.1)
    row = batch_size._row(1024, 512.0, memory, optimizer)
    assert row == batch_size.Row(1024, 256, pytest.approx(0.8), 1.5, 3.0)
    assert batch_size._row(64, math.inf, memory, optimizer) == batch_size.Row(64, None, pytest.approx(0.05), None, None)
    assert "?" in batch_size.table([batch_size._row(64, math.nan, memory, optimizer)])
    assert [batch_size._advised(noise, 1024) for noise in (math.inf, math.nan, 500.0, 0.3)] == [1024, 1024, 512, 1]


def test_a_noise_scale_beyond_measure_is_said_once(tmp_path):
    memory = BatchMemory(256, 0.0, 1.0, 256.0, "")
    row = batch_size._row(64, math.inf, memory, OptimizerConfig(scaling="none", base_learning_rate=0.1))
    answer = batch_size.Answer(math.inf, [1, 2], [math.inf, math.inf], memory, [row], 64)
    run = types.SimpleNamespace(config=types.SimpleNamespace(run=types.SimpleNamespace(batch_size=256)))
    first, _, rest = batch_size.report(answer, run).partition("\n")
    assert first.startswith("Gradient noise scale after 2 updates of 256: beyond measure") and "beyond" not in rest
    plot_batch_sizes(tmp_path / "picture.png", [1, 2], [math.inf, math.inf], [64], math.inf)
    assert (tmp_path / "picture.png").exists()


def test_memory_is_affine_in_the_examples():
    assert affine({2: 30.0, 4: 50.0, 8: math.inf}) == (10.0, 10.0)
    assert affine({4: 40.0}) == (0.0, 10.0)
