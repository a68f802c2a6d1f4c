"""Bad input ends in one sentence that names the argument and the value, before anything is written."""

from __future__ import annotations

import os
import re

import pytest
from train_runs import command_line, parsed_flags

from tf_largebatch.train import TrainConfig, main
from tf_largebatch.train.config import FLAGS
from tf_largebatch.train.resolve import APPLIES, RANGES, resolved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=digit"], "dataset must be one of digits, .*dataset='digit' .did you mean digits"),
        (["--dataset=cifar100"], "dataset 'cifar100' is not prepared in .*tfds build cifar100"),
        (["--model=resnet21"], "model must be one of resnet8, .*; received model='resnet21'"),
        (["--optimizer=clar"], "optimizer must be one of clars, .*optimizer='clar': did you mean clars"),
        (["--batch_size=1438"], "batch_size must be at most the 1437 training images of digits.*batch_size=1438"),
        (["--batch_size=0"], "batch_size must be 1 or more; received batch_size=0"),
        (["--epochs=0"], "epochs must be 1 or more; received epochs=0"),
        (["--norm_examples=513"], "norm_examples must be from 1 to the batch size, 512; received norm_examples=513"),
        (["--micro_batch_size=513"], "micro_batch_size must be from 1 to the batch size, 512.*=513"),
        (["--warmup_epochs=60"], "warmup_epochs must be 0 or more, below the 60 epochs; received warmup_epochs=60"),
        (["--base_learning_rate=-1"], "base_learning_rate must be above 0 and finite; received base_learning_rate=-1"),
        (["--base_learning_rate=inf"], "base_learning_rate must be above 0 and finite; .*=inf"),
        (["--weight_decay_rate=-1"], "weight_decay_rate must be 0 or more and finite; received weight_decay_rate=-1"),
        (["--momentum=1"], "momentum must be at least 0 and below 1; received momentum=1"),
        (["--label_smoothing=1"], "label_smoothing must be at least 0 and below 1; received label_smoothing=1"),
        (["--stop_after_epoch=61"], "stop_after_epoch must be from 1 to the 60 epochs; received stop_after_epoch=61"),
        (["--verbose=3"], "verbose must be 0, 1 or 2; received verbose=3"),
        (["--model=resnet50"], r"model ResNet50 cannot be built for images of shape \(8, 8, 1\).*image_size"),
        (["--augment=inception"], "augment must be none, crop_flip or random for digits.*augment='inception'"),
        (["--adversarial=conadv", "--epsilon=-1"], "epsilon must be 0 or more and finite; received epsilon=-1"),
        (["--adversarial=conadv", "--epsilon=nan"], "epsilon must be 0 or more and finite; received epsilon=nan"),
        (["--adversarial=conadv", "--staleness=-1"], "staleness must be 1 or more; .*received staleness=-1"),
        (["--adversarial=conadv", "--staleness=0"], "staleness must be 1 or more; --adversarial=disadv uses the pres"),
        (["--adversarial=conadv", "--num_steps=0"], "num_steps must be 1 or more; received num_steps=0"),
        (["--adversarial=conadv", "--step_size=-1"], "step_size must be 0 or more and finite; received step_size=-1"),
        (["--adversarial=conadv", "--random_start=2"], "random_start must be a probability from 0 to 1.*=2"),
        (["--eval_attack=targeted", "--eval_epsilon=-4"], "eval_epsilon must be 0 or more and finite"),
        (["--resume"], "output_dir must be given with resume; received output_dir=None"),
        (["--output_dir=gs://bucket/run"], "output_dir must be a path of this machine.*='gs://bucket/run'"),
        (["--dataset=mnist", "--data_dir=s3://host/sets"], "data_dir must be a path of this machine.*'s3://host"),
    ],
)  # fmt: skip
def test_values(arguments, message, tmp_path, monkeypatch, capsys):
    refused(arguments, message, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "flag", "without", "to"),
    [
        (["--data_dir=x"], "data_dir", "dataset=digits", "dataset=folder and sets of tensorflow_datasets"),
        (["--download"], "download", "dataset=digits", "sets of tensorflow_datasets"),
        (["--validation_examples=5"], "validation_examples", "eval_split=test", "eval_split=validation"),
        (["--base_batch_size=5", "--scaling=none"], "base_batch_size", "scaling=none", "scaling=linear and sqrt"),
        (["--momentum=0.9", "--optimizer=adam"], "momentum", "optimizer=adam", "optimizers with momentum"),
        (["--eta=0.1", "--optimizer=sgd"], "eta", "optimizer=sgd", "clars and lars"),
        (["--max_rate=1", "--optimizer=lamb"], "max_rate", "optimizer=lamb", "clars and lars"),
        (["--norm_exponent=0.5", "--optimizer=lars"], "norm_exponent", "optimizer=lars", "clars"),
        (["--max_agreement=0.5", "--optimizer=lars"], "max_agreement", "optimizer=lars", "clars"),
        (
            ["--unadapted_rate_factor=2", "--optimizer=lamb"],
            "unadapted_rate_factor",
            "optimizer=lamb",
            "clars and lars",
        ),
        (["--noclassic_momentum", "--optimizer=lamb"], "classic_momentum", "optimizer=lamb", "clars and lars"),
        (["--record_every=3", "--optimizer=sgd"], "record_every", "optimizer=sgd", "clars and lars"),
        (["--norm_examples=8", "--optimizer=lars"], "norm_examples", "optimizer=lars", "clars, and other optimizers"),
        (["--noise_scale", "--adversarial=conadv"], "noise_scale", "adversarial=conadv", "training on clean images"),
        (["--epsilon=4"], "epsilon", "adversarial=none", "adversarial training, and eval_epsilon to eval_attack"),
        (["--augmented_stream=rand_augment"], "augmented_stream", "adversarial=none", "adversarial training, and au"),
        (["--staleness=2"], "staleness", "adversarial=none", "adversarial=conadv"),
        (["--staleness=1", "--adversarial=disadv"], "staleness", "adversarial=disadv", "adversarial=conadv"),
        (["--num_steps=2", "--adversarial=noise"], "num_steps", "adversarial=noise", "adversarial=conadv and disadv"),
        (["--step_size=2"], "step_size", "adversarial=none", "adversarial=conadv and disadv"),
        (["--random_start=0"], "random_start", "adversarial=none", "adversarial=conadv and disadv"),
        (["--notargeted"], "targeted", "adversarial=none", "adversarial=conadv and disadv"),
        (["--eval_epsilon=4"], "eval_epsilon", "eval_attack=none", "eval_attack=untargeted and targeted"),
        (["--replicas=2"], "replicas", "strategy=one_device", "strategy=mirrored"),
        (["--tpu=local"], "tpu", "strategy=one_device", "strategy=tpu"),
    ],
)
def test_flags_that_do_not_apply(arguments, flag, without, to, tmp_path, monkeypatch, capsys):
    message = f"{flag} must be left out with {without}; received {flag}=.*: it applies to {to}"
    refused(arguments, message, tmp_path, monkeypatch, capsys)


def refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no sets"))
    monkeypatch.chdir(tmp_path)
    assert command_line(*arguments) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_the_tables_name_flags():
    named = {name for one in APPLIES for name in (*one.flags, one.by)} | set(RANGES)
    assert named <= set(FLAGS)


def test_flags_that_keep_their_defaults_never_fail():
    for kind in ("none", "conadv", "disadv", "noise"):
        for optimizer in ("clars", "lars", "sgd", "adam"):
            resolved(TrainConfig.from_flags(adversarial=kind, optimizer=optimizer, noise_scale=False))


def test_what_is_resolved_resolves_to_itself():
    for options in (
        {},
        {"dataset": "cifar10", "optimizer": "Adam", "scaling": "none"},
        {"optimizer": "lars", "max_rate": float("inf"), "output_dir": "~/run"},
        *({"adversarial": kind, "eval_attack": "untargeted"} for kind in ("conadv", "disadv", "noise")),
    ):
        once = resolved(TrainConfig.from_flags(**options))
        assert resolved(once) == once


def test_defaults_of_adversarial_training():
    def found(**options):
        return resolved(TrainConfig.from_flags(**options))

    conadv = found(adversarial="conadv")
    assert (conadv.adversarial.epsilon, conadv.adversarial.staleness) == (4.0, 1)
    assert (conadv.adversarial.num_steps, conadv.adversarial.targeted) == (1, True)
    assert conadv.run.noise_scale is False and conadv.adversarial.eval_epsilon is None
    assert found(adversarial="disadv").adversarial.staleness is None
    assert found(adversarial="noise").adversarial.num_steps is None
    assert found().adversarial.epsilon is None
    # The radius that the run trains with, unless stated.
    assert found(adversarial="noise", epsilon=8.0, eval_attack="targeted").adversarial.eval_epsilon == 8.0
    assert found(eval_attack="untargeted").adversarial.eval_epsilon == 4.0


def test_defaults_of_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolved(TrainConfig.from_flags()).run.noise_scale is True
    assert resolved(TrainConfig.from_flags(optimizer="lars")).run.noise_scale is False
    assert resolved(TrainConfig.from_flags(output_dir="~/a")).run.output_dir == str(tmp_path / "a")
    # A bar on a terminal, else one line an epoch.
    for terminal, verbose in ((True, 1), (False, 2)):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        assert resolved(TrainConfig.from_flags()).run.verbose == verbose


def test_every_argument_of_the_run_is_a_flag_with_help():
    values = parsed_flags()
    assert len(FLAGS) == len(TrainConfig().flags()) > 40
    for name, one in FLAGS.items():
        assert values[name].help and values[name].default == one.default


def test_sections_and_flags_are_two_forms_of_one_thing():
    config = TrainConfig.from_flags(dataset="mnist", batch_size=7, optimizer="sgd", adversarial="noise")
    assert (config.data.name, config.run.batch_size) == ("mnist", 7)
    assert (config.optimizer.name, config.adversarial.kind) == ("sgd", "noise")
    assert TrainConfig.from_flags(**config.flags()) == config
    with pytest.raises(TypeError, match="attack_steps is not a flag"):
        config.with_flags(attack_steps=1)


def test_arguments_that_are_no_flags(capsys):
    assert main(["train", "digits"], parsed_flags()) == 1
    assert "every argument must be a flag, --name=value; received " in capsys.readouterr().err
