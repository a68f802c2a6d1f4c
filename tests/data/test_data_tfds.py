"""Sets of tensorflow_datasets: generated here, the real CIFAR-10 where it is at hand, and what is said without."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tf_largebatch import data
from tf_largebatch.data import tfds as prepared

tfds = pytest.importorskip("tensorflow_datasets")


class _Pictures(tfds.core.GeneratorBasedBuilder):
    """Uniformly coloured pictures whose brightness is ten times their number, in two shards."""

    VERSION = tfds.core.Version("1.0.0")
    shape: tuple[int | None, int | None, int] = (None, None, 3)
    encoding = "jpeg"
    wrong_label = False

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=self.shape, encoding_format=self.encoding),
                    "label": tfds.features.ClassLabel(num_classes=25),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(25), "validation": self._generate_examples(7)}

    def _generate_examples(self, count):
        for i in range(count):
            height, width = self.shape[0] or 16 + i, self.shape[1] or 40 - i
            label = -1 if self.wrong_label else i
            yield i, {"image": np.full((height, width, 3), 10 * i, np.uint8), "label": label}


class TinyJpegs(_Pictures):
    """Of differing sizes: streamed."""


class TinyPngs(_Pictures):
    """Of one size: kept in memory, unless that is too small."""

    shape = (16, 16, 3)
    encoding = "png"


class TinyUnlabelled(_Pictures):
    """Label -1 is tensorflow_datasets' word for none."""

    wrong_label = True


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TinyJpegs, TinyPngs, TinyUnlabelled):
        builder(data_dir=path).download_and_prepare()
    return path


def brightness(dataset, batches):
    """Pixels / 10 of the middle of each image: its number."""
    images = np.concatenate([images.numpy() for images, _ in batches])
    return (images * dataset.std + dataset.mean)[:, 5, 5, 0] * dataset.pixel_scale / 10


def labels_of(batches):
    return np.concatenate([labels.numpy() for _, labels in batches])


@pytest.mark.parametrize(("name", "image_size"), [("tiny_jpegs", 24), ("tiny_pngs", None)])
def test_streamed_sets(name, image_size, data_dir, monkeypatch):
    monkeypatch.setattr("tf_largebatch.data.memory.IN_MEMORY_BYTES", 0)
    dataset = data.load(name, data_dir=data_dir, image_size=image_size)
    assert (dataset.train_size, dataset.eval_size, dataset.num_classes) == (25, 7, 25)
    assert dataset.image_shape == (image_size or 16, image_size or 16, 3) and dataset.augment == "inception"

    evaluated = list(dataset.evaluation(3))
    assert sorted(labels_of(evaluated)) == list(range(7))
    np.testing.assert_allclose(brightness(dataset, evaluated), labels_of(evaluated), atol=0.15)  # JPEG is lossy

    whole = list(dataset.train(10, seed=7, epochs=3))
    resumed = list(dataset.train(10, seed=7, first_epoch=1, epochs=3))
    assert len(whole) == 6 and len(resumed) == 4
    for (images, labels), (again, labels_again) in zip(whole[2:], resumed, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)
    np.testing.assert_allclose(brightness(dataset, whole), labels_of(whole), atol=0.15)
    orders = np.split(labels_of(whole), 3)
    assert all(len(set(order)) == 20 for order in orders)
    assert not np.array_equal(orders[0], orders[1])


def test_streamed_validation_is_the_end_of_the_training_split(data_dir):
    dataset = data.load("tiny_jpegs", data_dir=data_dir, image_size=24, eval_split="validation", validation_examples=5)
    assert (dataset.train_size, dataset.eval_size) == (20, 5)
    seen = set(labels_of(dataset.train(20)))
    held_out = set(labels_of(dataset.evaluation()))
    assert not seen & held_out and seen | held_out == set(range(25))


def test_streamed_images_without_a_size_become_224_pixels(data_dir):
    assert data.load("tiny_jpegs", data_dir=data_dir).image_shape == (224, 224, 3)


def test_small_sets_are_kept_in_memory(data_dir):
    dataset = data.load("tiny_pngs", data_dir=data_dir)
    assert (dataset.train_size, dataset.eval_size, dataset.augment) == (25, 7, "none")
    batches = list(dataset.train(25))
    np.testing.assert_allclose(brightness(dataset, batches), labels_of(batches), atol=1e-4)


def test_a_streamed_label_outside_the_classes_stops_the_run(data_dir):
    dataset = data.load("tiny_unlabelled", data_dir=data_dir, image_size=24)
    with pytest.raises(Exception, match="must lie in the 25 classes 0 to 24"):
        next(iter(dataset.train(10)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifra10"}, r"dataset must be one of digits, .*; received dataset='cifra10' \(did you mean"),
        ({"name": "no such set"}, "dataset must be one of digits, .*; received dataset='no such set'"),
        (
            {"name": "cifar100"},
            r"dataset 'cifar100' is not prepared in .*: run `tfds build cifar100` or pass --download where "
            r"there is a network, or point TFDS_DATA_DIR or --data_dir at a directory that holds it\.",
        ),
        ({"name": "tiny_jpegs", "augment": "crop_flip"}, "augment must be inception or none for streamed sets"),
    ],
)
def test_what_is_said_of_a_set_that_is_not_there(arguments, message, data_dir):
    before = sorted(os.listdir(data_dir))
    with pytest.raises(ValueError, match=message) as raised:
        data.load(**arguments, data_dir=data_dir)
    assert "\n" not in str(raised.value)
    assert sorted(os.listdir(data_dir)) == before  # nothing downloaded


def test_what_a_file_system_says_is_one_sentence(monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError("Failed to construct dataset:\nno such host")

    monkeypatch.setattr(tfds, "builder", failing)
    message = r"^dataset 'mnist' cannot be read from gs://bucket/sets: Failed to construct dataset\.$"
    with pytest.raises(ValueError, match=message):
        data.load("mnist", data_dir="gs://bucket/sets")


def test_the_home_directory_is_expanded(data_dir, monkeypatch):
    home, name = os.path.split(data_dir)
    monkeypatch.setenv("HOME", home)
    assert data.load("tiny_pngs", data_dir=f"~/{name}").train_size == 25
    monkeypatch.setenv("TFDS_DATA_DIR", f"~/{name}")
    assert data.load("tiny_pngs").train_size == 25


def test_a_built_in_set_takes_one_row(monkeypatch):
    images = np.zeros((6, 4, 4, 1), np.uint8)
    arrays = (images, np.arange(6) % 2), (images, np.arange(6) % 2)
    monkeypatch.setitem(data.SETS, "mine", data.KnownSet(lambda: arrays, num_classes=2, augment="crop_flip"))
    dataset = data.load("mine")
    assert (dataset.train_size, dataset.num_classes, dataset.augment) == (6, 2, "crop_flip")
    assert data.is_built_in("mine") and not data.is_built_in("cifar10")


def test_sets_of_something_else_are_refused():
    features = tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    with pytest.raises(ValueError, match="one image and a class label; received dataset='imdb' with the features"):
        prepared.image_and_label("imdb", features)
    with pytest.raises(ValueError, match=r"train and a test or validation split; received dataset='x' .* train"):
        prepared.test_split("x", {"train": None})
    splits = {"train": None, "validation": None, "test": None}
    assert prepared.test_split("x", splits) == "test"
    assert prepared.test_split("imagenet2012", splits, data.SETS["imagenet2012"].test_splits) == "validation"


@pytest.fixture(scope="module")
def cifar10():
    if not os.environ.get("TFDS_DATA_DIR"):
        pytest.skip("TFDS_DATA_DIR is not set: the real CIFAR-10 is tested where it points at one")
    try:
        return data.load("cifar10", eval_split="validation")
    except ValueError as error:
        pytest.skip(str(error))


def test_cifar10_is_the_real_one(cifar10):
    assert (cifar10.train_size, cifar10.eval_size, cifar10.num_classes) == (45_000, 5_000, 10)
    assert cifar10.image_shape == (32, 32, 3) and cifar10.augment == "crop_flip"
    # Published for all 50,000; these are 45,000 of them.
    np.testing.assert_allclose(cifar10.mean, (0.49140, 0.48216, 0.44653), atol=1e-3)
    np.testing.assert_allclose(cifar10.std, (0.24703, 0.24349, 0.26159), atol=1e-3)
    images, labels = next(iter(cifar10.train(4096)))
    assert images.shape == (4096, 32, 32, 3) and np.bincount(labels).min() > 300
