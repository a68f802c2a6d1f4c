"""Sets held in memory: splits, order, augmentation, standardization, refusals.

tf.data makes these batches, whatever Keras computes with. test_pipelines.py compares them with those that NumPy makes.
"""

from __future__ import annotations

import numpy as np
import pytest

from tf_largebatch import data

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def numbered_images(count, size=6):
    """Images that carry their own number, and labels that are the number."""
    images = np.zeros((count, size, size, 3), np.uint8)
    images[:, 2, 3, :] = np.arange(count)[:, None]
    return images, np.arange(count)


def labels_of(batches):
    return np.concatenate([labels.numpy() for _, labels in batches])


def test_digits_are_split_1437_to_360_with_equal_shares_of_the_classes(digits):
    (x_train, y_train), (x_test, y_test) = data.load_digits()
    assert (digits.train_size, digits.eval_size, digits.num_classes) == (1437, 360, 10)
    assert digits.image_shape == (8, 8, 1)
    assert x_train.shape == (1437, 8, 8, 1) and x_train.dtype == np.uint8 and x_train.max() == 16
    shares = np.bincount(y_test) / len(y_test) - np.bincount(y_train) / len(y_train)
    assert np.abs(shares).max() < 0.004
    train_images = {image.tobytes() for image in x_train}
    assert not any(image.tobytes() in train_images for image in x_test)


def test_batches_are_standardized_float32_images_and_int32_labels(digits):
    images, labels = next(iter(digits.train(1437)))
    assert images.dtype == tf.float32 and labels.dtype == tf.int32
    assert images.shape == (1437, 8, 8, 1) and labels.shape == (1437,)
    assert abs(np.mean(images)) < 1e-5 and abs(np.std(images) - 1) < 1e-5


def test_every_full_batch_of_an_epoch_holds_different_images_and_the_rest_is_dropped():
    train = numbered_images(23)
    dataset = data.from_arrays(train, train)
    epochs = np.split(labels_of(dataset.train(5, seed=1, epochs=3)), 3)
    assert dataset.steps_per_epoch(5) == 4
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 20
    assert set(np.concatenate(epochs)) == set(range(23))  # what is dropped differs


def test_order_depends_on_seed_and_epoch_alone(digits):
    whole = [labels.numpy() for _, labels in digits.train(256, seed=3, epochs=4)]
    resumed = [labels.numpy() for _, labels in digits.train(256, seed=3, first_epoch=2, epochs=4)]
    other = [labels.numpy() for _, labels in digits.train(256, seed=4, epochs=4)]
    np.testing.assert_array_equal(whole[10:], resumed)
    assert not np.array_equal(whole[:5], whole[5:10])
    assert not np.array_equal(whole, other)


def test_augmented_images_are_reproduced_too():
    train = numbered_images(20, size=16)
    dataset = data.from_arrays(train, train, augment="crop_flip")
    whole = [images.numpy() for images, _ in dataset.train(8, seed=5, epochs=3)]
    resumed = [images.numpy() for images, _ in dataset.train(8, seed=5, first_epoch=1, epochs=3)]
    np.testing.assert_array_equal(whole[2:], resumed)


def test_evaluation_covers_every_image_once_in_order_and_is_never_augmented():
    train = numbered_images(23)
    dataset = data.from_arrays(train, train, augment="crop_flip")
    np.testing.assert_array_equal(labels_of(dataset.evaluation(5)), np.arange(23))
    images = np.concatenate([images.numpy() for images, _ in dataset.evaluation(5)])
    restored = (images * dataset.std + dataset.mean) * dataset.pixel_scale
    np.testing.assert_allclose(restored, train[0], atol=1e-3)  # float32 of numbers up to 255


def test_crop_and_flip_only_moves_and_mirrors():
    from tf_largebatch.data.tensorflow_pipeline import crop_and_flip

    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (200, 8, 8, 3), dtype=np.uint8)
    moved = crop_and_flip(tf.constant(images), tf.constant([1, 2], tf.int64)).numpy()
    assert moved.dtype == np.uint8 and moved.shape == images.shape
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = set()
    for i in range(len(images)):
        found = [
            (top, left, mirror)
            for top in range(9)
            for left in range(9)
            for mirror in (False, True)
            if np.array_equal(padded[i, top : top + 8, left : left + 8][:, :: -1 if mirror else 1], moved[i])
        ]
        assert len(found) == 1
        seen.add(found[0])
    # 200 draws of 162 equally likely outcomes: 115 distinct expected, standard deviation 5.
    assert len(seen) > 90 and {mirror for *_, mirror in seen} == {False, True}


def test_validation_holds_out_the_last_training_images():
    (x_train, y_train), _ = data.load_digits()
    dataset = data.load("digits", eval_split="validation")
    assert (dataset.train_size, dataset.eval_size) == (1437 - 144, 144)
    np.testing.assert_array_equal(labels_of(dataset.evaluation()), y_train[-144:])
    # Statistics, too, are those of the images trained on.
    np.testing.assert_allclose(dataset.mean, x_train[:-144].mean() / 16)
    assert data.load("digits", eval_split="validation", validation_examples=100).eval_size == 100


def test_images_are_resized_on_request():
    dataset = data.load("digits", image_size=12)
    images, _ = next(iter(dataset.train(16)))
    assert dataset.image_shape == (12, 12, 1) and images.shape == (16, 12, 12, 1)


def test_a_constant_channel_is_left_alone():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    dataset = data.from_arrays((images, np.arange(4)), (images, np.arange(4)))
    batch, _ = next(iter(dataset.train(4)))
    np.testing.assert_array_equal(batch, np.zeros((4, 2, 2, 1)))


def test_description_is_json(digits):
    import json

    description = json.loads(json.dumps(digits.describe()))
    assert description["train_size"] == 1437 and description["pixel_scale"] == 16
    assert "make_train" not in description


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.load("digits", eval_split="dev"), "eval_split must be one of test, validation.*'dev'"),
        (lambda: data.load("digits", augment="mixup"), "augment must be one of .*'mixup'"),
        (lambda: data.load("digits", augment="inception"), "augment must be none, crop_flip or random for digits"),
        (lambda: data.load("digits", image_size=0), "image_size must be at least 1.*image_size=0"),
        (
            lambda: data.load("digits", eval_split="validation", validation_examples=1437),
            "validation_examples must be from 1 to 1436.*=1437",
        ),
        (lambda: data.load("digits").train(1438), "batch_size must be from 1 to the 1437 .*=1438"),
        (lambda: data.check_labels(np.array([0, 9, 10]), 10), "10 classes 0 to 9; received 10 at position 2"),
        (lambda: data.check_labels(np.array([0, -1]), 10), "received -1 at position 1"),
        (lambda: data.check_labels(np.array([0.5]), 10), "labels must be integers; received float64"),
        (
            lambda: data.from_arrays(numbered_images(5), numbered_images(9), num_classes=5),
            "test labels of arrays must lie in the 5 classes 0 to 4; received 5 at position 5",
        ),
        (
            lambda: data.from_arrays((np.zeros((2, 3, 3)), np.zeros(2, int)), numbered_images(2)),
            "training images of arrays must be uint8",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
