"""What the command line refuses: one sentence on stderr and status 1, before any work."""

from __future__ import annotations

import json
import re

import imagenet_like
import model_garden_runs as runs
import numpy as np
import pytest
import tensorflow as tf

from tf_largebatch.model_garden.labels import with_checked_labels

EAGER = {"train_tf_function": False, "train_tf_while_loop": False, "eval_tf_function": False}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return imagenet_like.write_records(tmp_path_factory.mktemp("records") / "train-00000.tfrecord")


@pytest.fixture(scope="module")
def base(records):
    return runs.merged(runs.tiny(records), runs.TINY, {"trainer": EAGER})


@pytest.fixture
def refused(base, tmp_path, capsys):
    """Runs the command line and checks that it ends in status 1 and a sentence like this one."""

    def run(message, override=None, experiment="clars_resnet_imagenet", model_dir=None, **flags):
        override = override if isinstance(override, str) else json.dumps(runs.merged(base, override or {}))
        assert runs.run_main(model_dir or tmp_path / "run", experiment, override, **flags) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and re.search(message, lines[0]), lines
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"task": {"conadv": {"epsilom": 1}}}, r"task\.conadv\.epsilom is not a field .*did you mean epsilon"),
        ({"trainer": {"train_steps": 2.5}}, r"trainer\.train_steps must be an integer"),
        ({"trainer": {"optimizer_config": {"optimizer": {"type": "clar"}}}}, r"optimizer\.type must be .*'clar'"),
        ({"task": {"train_data": {"input_path": "/no/train*"}}}, r"task\.train_data\.input_path .*'/no/train\*'"),
        ({"task": {"train_data": {"input_path": "", "tfds_name": "cifar10", "tfds_split": "train",
                                  "tfds_data_dir": "/no"}}}, r"task\.train_data\.tfds_name must .* in /no; .*cifar10"),
        ({"task": {"gradient_norms": {"mode": "sampled", "norm_examples": 9}}}, r"norm_examples .*the 8 .*=9"),
        ({"task": {"train_data": {"label_field_key": "nope"}}}, r"label_field_key must be .*image/class/label"),
        ({"task": {"model": {"num_classes": 4}}}, r"task\.model\.num_classes must be at least 5.*has the label 4"),
        ({"task": {"model": {"backbone": {"type": "resnet", "resnet": {"model_id": 51}}}}}, r"with resnet: .* 51"),
        ({"task": {"model": {"norm_activation": {"activation": "nope"}}}}, r"task\.model cannot be built .*'nope'"),
        ({"task": {"init_checkpoint": "/no/ckpt"}}, r"task\.init_checkpoint must be a checkpoint"),
        ({"runtime": {"num_gpus": 99}}, r"runtime\.num_gpus must be at most"),
        (
            {"trainer": {"optimizer_config": {"optimizer": {"clars": {"exclude_from_weight_decay": ["nothing"]}}}}},
            r"optimizer\.clars: .*exclude_from_weight_decay.*nothing",
        ),
    ],
)  # fmt: skip
def test_values(override, message, refused):
    refused(message, override)


def test_layers_without_a_rule(refused, monkeypatch):
    from tf_largebatch.tf_keras.norms import TF_KERAS

    monkeypatch.setattr(TF_KERAS, "_entries", {})
    refused(r"not available for these layers: .*conv2d", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"task: {a: [1, 2\nfoo: }", r"correct YAML; .*line 2"),
        (b"task:\n\tmodel: 3", r"correct YAML; .*line 2"),
        (b"", r"a mapping of fields.*it is empty"),
        (b"- 1\n- 2", r"a mapping of fields.*it holds list"),
        (b"hello", r"a mapping of fields.*it holds str"),
        (b"\xff\xfe\x00abc", r"that can be read"),
        (b"tsk: 3", r"tsk is not a field .*did you mean task"),
        (None, r"that can be read; .*No such file"),
    ],
)
def test_config_files(content, message, refused, tmp_path):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content)
    refused(message, config_file=[file])


def test_a_directory_as_config_file(refused, tmp_path):
    refused(r"--config_file must be a YAML file that can be read", config_file=[tmp_path])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.train_steps", r"--params_override must be field=value pairs"),
        ('{"trainer": ', r"--params_override must be correct YAML"),
        ("3", r"--params_override must be a mapping of fields"),
        ("trainer.trainsteps=3", r"trainer\.trainsteps is not a field"),
    ],
)
def test_overrides(override, message, refused):
    refused(message, override)


def test_flags(refused, tmp_path):
    refused("clars_resnet", experiment="clars_resnet")
    refused("--mode must be one of train, eval", mode="train_and_validate")
    refused("a directory with a checkpoint in --mode=eval", mode="eval")
    (tmp_path / "file").write_text("")
    refused("--model_dir must be a directory that can be written to", model_dir=tmp_path / "file")
    refused("--model_dir must be a directory that can be written to", model_dir=tmp_path / "file" / "below")


def test_files_that_hold_no_examples(refused, records, tmp_path):
    whole = open(records, "rb").read()
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").write_bytes(b"")
    with tf.io.TFRecordWriter(str(tmp_path / "other")) as writer:
        writer.write(b"\xff\xff\xffhello")
    for name, message in (
        ("noise", "cannot be read"),
        ("cut", "cannot"),
        ("other", "cannot"),
        ("empty", "hold records"),
    ):
        found = refused(message, {"task": {"train_data": {"input_path": str(tmp_path / name)}}})
        assert "task.train_data.input_path must be" in found


def test_a_label_that_comes_later(base, refused, tmp_path):
    first = imagenet_like.write_records(tmp_path / "many-0", examples=8, classes=4)
    imagenet_like.write_records(tmp_path / "many-1", examples=8, classes=10)
    data = {"train_data": {"input_path": str(tmp_path / "many-*"), "cycle_length": 2}}
    task = {"model": {"num_classes": 5}, "validation_data": {"input_path": first}, **data}
    refused("num_classes must be above every label of the data", {"task": task, "trainer": {"train_steps": 4}})


def test_labels_of_batches():
    images, labels = tf.zeros([6, 2]), tf.constant([0, 1, 2, 3, 1, 0])
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)
    assert len(list(with_checked_labels(dataset, 4))) == 2
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"task\.model\.num_classes must be above every label"):
        list(with_checked_labels(dataset, 3))
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(with_checked_labels(dataset.map(lambda x, y: (x, y - 1)), 4))
    multi_hot = dataset.map(lambda x, y: (x, tf.one_hot(y, 9)))
    assert with_checked_labels(multi_hot, 4) is multi_hot


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A finished run of two steps with two checkpoints, and what continues it."""
    directory = tmp_path_factory.mktemp("trained")
    steps = {"checkpoint_interval": 1, "train_steps": 2}
    assert runs.run_main(directory, "clars_resnet_imagenet", runs.merged(base, {"trainer": steps})) == 0
    return directory, {"trainer": {**steps, "train_steps": 3}}


@pytest.fixture
def damaged(trained):
    """Writes into a file of the run until the test ends; None removes it."""
    before = {}

    def damage(name, content):
        path = trained[0] / name
        before[path] = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content(before[path]))

    yield damage
    for path, content in before.items():
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ckpt-2.data-00000-of-00001", lambda whole: whole[: len(whole) // 2], r"ckpt-2, is damaged .*\"ckpt-1\""),
        ("ckpt-2.index", lambda whole: whole[:40], r"ckpt-2, is damaged .*\"ckpt-1\""),
        ("ckpt-2.index", None, r"file `checkpoint` names one of its checkpoints.*\"ckpt-1\""),
        ("checkpoint", lambda whole: b"", r"file `checkpoint` names one of its checkpoints.*\"ckpt-2\""),
        ("checkpoint", None, r"file `checkpoint` names one of its checkpoints.*\"ckpt-2\""),
    ],
)
def test_damaged_checkpoints(name, content, message, trained, damaged, refused):
    directory, override = trained
    damaged(name, content)
    refused(message, override, model_dir=directory)


def test_checkpoints_that_do_not_fit(trained, damaged, refused):
    directory, override = trained
    wider = {"task": {"model": {"backbone": {"densenet": {"growth_rate": 6}}}}}
    refused("belongs to another network", runs.merged(override, wider), model_dir=directory)
    refused(r"trained without task\.conadv", override, "conadv_resnet_imagenet", directory)
    damaged("ckpt-2.data-00000-of-00001", lambda whole: whole[: len(whole) // 2])
    refused("that can be read", {"task": {"init_checkpoint": str(directory / "ckpt-2")}})


def test_a_run_that_diverges(refused):
    rate = {"learning_rate": {"polynomial": {"initial_learning_rate": 1e30}}, "optimizer": {"type": "sgd"}}
    refused("training diverged .*: lower the learning rate", {"trainer": {"train_steps": 3, "optimizer_config": rate}})
