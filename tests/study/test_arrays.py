"""The data of a study as arrays: Fashion-MNIST's and CIFAR-10's files, .npz files, averaged images, crops and flips."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from tf_largebatch.study import arrays


def images(count, size=4, channels=1):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def idx(array):
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def npz(path, **changed):
    labels = np.arange(12) % 3
    given = {
        "x_train": images(12, channels=3),
        "y_train": labels,
        "x_test": images(6, channels=3),
        "y_test": labels[:6],
    }
    np.savez(path, **given | changed)
    return str(path)


def test_files_of_fashion_mnist(tmp_path):
    labels = (np.arange(12) % 3).astype(np.uint8)
    for prefix, count in (("train", 12), ("t10k", 6)):
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images(count)[..., 0]))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels[:count]))
    found = arrays.load("fashion_mnist", str(tmp_path), 3)
    assert (found.image_shape, found.num_classes) == ((4, 4, 1), 3)
    np.testing.assert_array_equal(found.test[1], labels[:6])
    kept = np.random.default_rng(42).permutation(12)[3:]
    expected = images(12)[kept].astype(float)
    np.testing.assert_allclose(found.training[0], (expected - expected.mean()) / expected.std(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.training[1], labels[kept])
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"data_dir must hold the file t10k-labels-idx1-ubyte\.gz, whole"):
        arrays.DATASETS["fashion_mnist"](str(tmp_path))
    # The same as one file of arrays.
    npz(tmp_path / "fashion_mnist.npz", x_test=images(5, channels=3), y_test=np.arange(5))
    assert len(arrays.DATASETS["fashion_mnist"](str(tmp_path))[1][0]) == 5


def test_images_are_averaged_to_a_smaller_size(tmp_path):
    path = npz(tmp_path / "mine.npz")
    small = arrays.load(path, None, 2, 2)
    assert small.image_shape == (2, 2, 3)
    blocks = images(6, channels=3).reshape(6, 2, 2, 2, 2, 3).mean((2, 4))
    low, high = (np.asarray([pair[i] for pair in small.value_range]) for i in (0, 1))
    # Standardization is linear: two points of it say what it is.
    whole = arrays._averaged(images(12, channels=3), 2)
    scale = (high - low) / (whole.max() - whole.min())
    np.testing.assert_allclose(small.test[0], low + (blocks - whole.min()) * scale, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="image_size must be a divisor of the images' 4 x 4 pixels"):
        arrays.load(path, None, 2, 3)
    with pytest.raises(ValueError, match="validation_examples must be below half of the 12 training images"):
        arrays.load(path, None, 6)


def test_crops_and_flips():
    pixels, margin = images(3, size=5, channels=2), arrays.CROP_MARGIN
    crops = np.array([[margin, margin, 0], [margin, margin, 1], [0, 2 * margin, 0]], np.int8)
    same, flipped, corner = arrays.crop_and_flip(pixels, crops)
    np.testing.assert_array_equal(same, pixels[0])
    np.testing.assert_array_equal(flipped, pixels[1][:, ::-1])
    expected = np.zeros_like(corner)
    expected[margin:, : 5 - margin] = pixels[2][: 5 - margin, margin:]
    np.testing.assert_array_equal(corner, expected)
    drawn = arrays.draw_crops(500, np.random.default_rng(0))
    assert [(column.min(), column.max()) for column in drawn.T] == [(0, 2 * margin), (0, 2 * margin), (0, 1)]


def test_cifar10_of_a_file_and_what_is_missing(tmp_path):
    for name in ("cifar10", "fashion_mnist"):
        with pytest.raises(ValueError, match=r"data_dir must be (a directory with cifar10\.npz|the directory of)"):
            arrays.DATASETS[name](str(tmp_path / "nothing") if name == "cifar10" else None)
    npz(tmp_path / "cifar10.npz")
    training, test = arrays.DATASETS["cifar10"](str(tmp_path))
    np.testing.assert_array_equal(test[0], images(6, channels=3))
    assert len(training[1]) == 12
    np.savez(tmp_path / "half.npz", x_train=images(2))
    for path in ("half.npz", "none.npz"):
        with pytest.raises(ValueError, match=r"must be an \.npz file with x_train, y_train, x_test and y_test"):
            arrays.load(str(tmp_path / path), None, 1)
