"""Bad input of tf_keras's optimizers and of Model Garden's command line ends in the message of its table."""

from __future__ import annotations

import pathlib
import re

import imagenet_like
import model_garden_runs as runs
import numpy as np
import orbit
import pytest
import refusal_tables
import tensorflow as tf
import yaml
from selection import long

from tf_largebatch.tf_keras.optimizers import CLARS, LARS

REFUSALS = refusal_tables.refusals("bad input, Model Garden")
OPTIMIZERS, EXPERIMENTS = REFUSALS
EAGER = {"train_tf_function": False, "train_tf_while_loop": False, "eval_tf_function": False}


def no_training(*args, **kwargs):
    raise AssertionError("it trains")


def differences(found, expected):
    """The rows whose message is another one."""
    return "\n".join(
        f"{row}\n  must say {expected[row]}\n  says     {message}"
        for row, message in found.items()
        if not re.fullmatch(refusal_tables.pattern(expected[row]), message)
    )


def test_optimizers():
    variables = [tf.Variable(np.ones((2, 3), "float32"), name="kernel"), tf.Variable(np.ones(3, "float32"), name="b")]
    names = {"CLARS": CLARS, "LARS": LARS, "VARIABLES": variables, "GRADIENT": tf.ones((2, 3))}
    found = {}
    for call in REFUSALS[OPTIMIZERS]:
        with pytest.raises(ValueError) as error:
            eval(call, dict(names))
        found[call] = str(error.value)
    assert not differences(found, REFUSALS[OPTIMIZERS])


@pytest.mark.parametrize("every", [10, long(1)])
def test_experiments(every, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "evaluate", "train_and_evaluate"):
        monkeypatch.setattr(orbit.Controller, name, no_training)
    imagenet_like.write_records("train-00000.tfrecord")
    trains = runs.merged(runs.tiny("train-00000.tfrecord"), runs.TINY, {"trainer": EAGER})
    pathlib.Path("run.yaml").write_text(yaml.safe_dump(trains))
    files, found = sorted(pathlib.Path().rglob("*")), {}
    for row in list(REFUSALS[EXPERIMENTS])[::every]:
        assert runs.run_main("run", *row.split(" ", 1), config_file=["run.yaml"]) == 1, row
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        found[row] = " ".join(lines).removeprefix("error: ")
        assert sorted(pathlib.Path().rglob("*")) == files, row
    assert not differences(found, REFUSALS[EXPERIMENTS])
