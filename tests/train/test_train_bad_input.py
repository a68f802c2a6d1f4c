"""Bad input ends in one sentence that names the argument and the value, before anything is written."""

from __future__ import annotations

import os
import re

import keras
import pytest
from absl import flags

from tf_largebatch import train
from tf_largebatch.train.config import TrainConfig, build_optimizer, build_schedule, resolved


def command_line(arguments, extra=()):
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", *arguments])
    return train.main(["train", *extra], values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=digit"], "dataset must be one of digits, .*dataset='digit' .did you mean digits"),
        (["--dataset=cifar100"], "dataset 'cifar100' is not prepared in .*tfds build cifar100"),
        (["--model=resnet21"], "model must be one of resnet8, .*; received model='resnet21'"),
        (["--optimizer=clar"], "optimizer must be one of clars, .*optimizer='clar' .did you mean clars"),
        (["--batch_size=1438"], "batch_size must be at most the 1437 training images of digits.*batch_size=1438"),
        (["--batch_size=0"], "batch_size must be above 0; received batch_size=0"),
        (["--epochs=0"], "epochs must be above 0; received epochs=0"),
        (["--norm_examples=513"], "norm_examples must be from 1 to the batch size, 512; received norm_examples=513"),
        (["--norm_examples=8", "--optimizer=lars"], "norm_examples applies to clars.*=8 .*optimizer='lars'"),
        (["--micro_batch_size=513"], "micro_batch_size must be from 1 to the batch size, 512.*=513"),
        (["--warmup_epochs=60"], "warmup_epochs must be 0 or more, below the 60 epochs; received warmup_epochs=60"),
        (["--base_learning_rate=-1"], "base_learning_rate must be above 0; received base_learning_rate=-1"),
        (["--weight_decay=-1"], "weight_decay must be 0 or more; received weight_decay=-1"),
        (["--momentum=1"], "momentum must be at least 0 and below 1; received momentum=1"),
        (["--momentum=0.9", "--optimizer=adam"], "momentum must be left out .*momentum=0.9.*optimizer='adam'"),
        (["--eta=0.1", "--optimizer=sgd"], "eta applies to clars and lars; received eta=0.1 with optimizer='sgd'"),
        (["--label_smoothing=1"], "label_smoothing must be at least 0 and below 1; received label_smoothing=1"),
        (["--stop_after_epoch=61"], "stop_after_epoch must be from 1 to the 60 epochs; received stop_after_epoch=61"),
        (["--model=resnet50"], r"model ResNet50 cannot be built for images of shape \(8, 8, 1\).*image_size"),
        (["--augment=inception"], "augment must be none or crop_flip for digits.*augment='inception'"),
    ],
)  # fmt: skip
def test_flags(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no sets"))
    monkeypatch.chdir(tmp_path)
    assert command_line(arguments) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_resume_without_a_directory(capsys):
    assert command_line(["--resume"]) == 1
    assert "output_dir must be given with resume; received output_dir=None" in capsys.readouterr().err


def test_resume_of_no_run(tmp_path, capsys):
    assert command_line(["--resume", f"--output_dir={tmp_path}"]) == 1
    assert "output_dir must hold a run's config.json to resume from" in capsys.readouterr().err


def test_a_directory_of_something_else(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert command_line([f"--output_dir={tmp_path}"]) == 1
    assert "is not empty: name another directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_arguments_that_are_no_flags(capsys):
    assert command_line([], extra=["digits"]) == 1
    assert "every argument must be a flag (--name=value); received 'digits'" in capsys.readouterr().err


def test_values_outside_a_choice_are_refused_by_the_flag_and_by_the_configuration():
    with pytest.raises(flags.IllegalFlagValueError, match="mixed_precision"):
        command_line(["--mixed_precision=float8"])
    with pytest.raises(ValueError, match=r"mixed_precision must be one of float32, .*'float8'"):
        resolved(TrainConfig(mixed_precision="float8"))


def test_every_argument_of_the_run_is_a_flag_with_help():
    values = flags.FlagValues()
    train.define_flags(values)
    for name in TrainConfig.__dataclass_fields__:
        assert values[name].help


def test_defaults_depend_on_the_optimizer_and_the_data_set():
    digits, cifar10 = resolved(TrainConfig()), resolved(TrainConfig(dataset="cifar10", batch_size=4096))
    assert digits.base_learning_rate > cifar10.base_learning_rate
    assert (cifar10.optimizer, cifar10.scaling, cifar10.eta, cifar10.max_rate) == ("clars", "linear", 0.3, 1.0)
    assert build_schedule(cifar10, 12).peak_learning_rate == pytest.approx(1.0)
    adam = resolved(TrainConfig(optimizer="Adam"))
    assert (adam.optimizer, adam.momentum, adam.eta, adam.classic_momentum) == ("adam", None, None, None)


def test_an_infinite_cap_is_none():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = build_optimizer(resolved(TrainConfig(max_rate=float("inf"))), 0.1, model)
    assert optimizer.max_rate is None


@pytest.mark.parametrize("name", ["sgd", "lamb", "adamw", "muon"])
def test_keras_optimizers_leave_the_same_tensors_without_decay(name):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = build_optimizer(resolved(TrainConfig(optimizer=name, weight_decay=0.1)), 0.1, model)
    optimizer.build(model.trainable_variables)
    assert optimizer.weight_decay == 0.1
    assert [optimizer._use_weight_decay(v) for v in model.trainable_variables] == [True, False]
