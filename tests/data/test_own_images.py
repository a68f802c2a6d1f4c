"""Data sets of one's own: directories of images and .npz files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tf_largebatch import data
from tf_largebatch.data import folder

CLASSES = ("cats", "dogs", "owls")


def write_images(root, per_class=4, size=(10, 12), mode="RGB", suffix="png", first=0):
    """Images of one colour, which says the class and the number: lossless in JPEG, too, within a few levels."""
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = np.full((*size, 3), (80 * number, 20 * (first + i), 100), np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{first + i}.{suffix}")


def pixels_of(dataset, batches):
    images, labels = (np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*batches, strict=True))
    return (images * dataset.std + dataset.mean) * dataset.pixel_scale, labels


@pytest.mark.parametrize("suffix", ["png", "JPG"])
def test_a_folder_with_a_validation_part(suffix, tmp_path):
    write_images(tmp_path / "train", suffix=suffix)
    write_images(tmp_path / "validation", per_class=2, first=5, suffix=suffix)
    (tmp_path / "train" / "cats" / "notes.txt").write_text("no image")
    dataset = data.load("folder", data_dir=str(tmp_path))
    assert (dataset.train_size, dataset.eval_size, dataset.eval_split) == (12, 6, "validation")
    assert dataset.class_names == CLASSES and dataset.image_shape == (10, 12, 3)
    assert json.loads(json.dumps(dataset.describe()))["class_names"] == list(CLASSES)
    pixels, labels = pixels_of(dataset, dataset.evaluation(4))
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(pixels[:, 5, 5, 0], 80 * labels, atol=3)
    np.testing.assert_allclose(pixels[:, 5, 5, 1], [100, 120] * 3, atol=3)
    _, labels = pixels_of(dataset, dataset.train(12))
    assert sorted(labels) == [0] * 4 + [1] * 4 + [2] * 4


def test_a_folder_of_classes_alone_holds_out_images_of_every_class(tmp_path):
    write_images(tmp_path, per_class=10)
    dataset = data.load("folder", data_dir=str(tmp_path), validation_examples=12)
    assert (dataset.train_size, dataset.eval_size, dataset.eval_split) == (18, 12, "validation")
    _, labels = pixels_of(dataset, dataset.evaluation())
    assert set(labels) == {0, 1, 2}


def test_images_of_several_sizes_are_cropped_and_resized(tmp_path):
    write_images(tmp_path / "train", size=(40, 20), mode="L")
    write_images(tmp_path / "test", size=(30, 60), mode="L")
    assert data.load("folder", data_dir=str(tmp_path)).image_shape == (224, 224, 1)
    dataset = data.load("folder", data_dir=str(tmp_path), image_size=16)
    assert dataset.image_shape == (16, 16, 1) and dataset.eval_split == "test"


def test_resizing_keeps_proportions(tmp_path):
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[10:20, :, 0] = pixels[20:30, :, 1] = 200  # red above green, in the square in the middle
    Image.fromarray(pixels).save(tmp_path / "image.png")
    found = folder.read_image(str(tmp_path / "image.png"), (8, 8), 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, :, 0], 200)
    np.testing.assert_array_equal(found[7, :, 1], 200)


def test_a_folder_too_large_for_memory_is_streamed(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    write_images(tmp_path, per_class=10)
    monkeypatch.setattr("tf_largebatch.data.memory.IN_MEMORY_BYTES", 0)
    dataset = data.load("folder", data_dir=str(tmp_path), image_size=8, augment="none", validation_examples=6)
    assert dataset.image_shape == (8, 8, 3) and (dataset.train_size, dataset.eval_size) == (24, 6)
    pixels, labels = pixels_of(dataset, dataset.train(8, seed=1, epochs=2))
    np.testing.assert_allclose(pixels[:, 4, 4, 0], 80 * labels, atol=3)
    seen = [
        set(zip(labels[part].tolist(), np.rint(pixels[part, 4, 4, 1]).tolist(), strict=True))
        for part in (slice(24), slice(24, 48))
    ]
    assert len(seen[0]) == 24 and seen[0] == seen[1]
    assert not np.array_equal(labels[:24], labels[24:])
    monkeypatch.setattr("tf_largebatch.data.own_images.tensorflow_is_installed", lambda: False)
    with pytest.raises(ValueError, match="dataset=folder must fit in 0 GiB where TensorFlow is not installed"):
        data.load("folder", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    "names", [("images", "labels", "test_images", "test_labels"), ("x_train", "y_train", "x_test", "y_test")]
)
def test_a_numpy_file(names, tmp_path):
    (x, y), (x_test, y_test) = data.load_digits()
    arrays = dict(zip(names, (x[..., 0], y[:, None], x_test, y_test), strict=True))
    np.savez(tmp_path / "set.npz", **arrays, class_names=[f"digit {i}" for i in range(10)])
    dataset = data.load(str(tmp_path / "set.npz"))
    assert (dataset.train_size, dataset.eval_size, dataset.eval_split) == (1437, 360, "test")
    assert dataset.image_shape == (8, 8, 1) and dataset.class_names[3] == "digit 3"
    held_out = data.load(str(tmp_path / "set.npz"), eval_split="validation")
    assert (held_out.train_size, held_out.eval_size, held_out.eval_split) == (1437 - 144, 144, "validation")


def test_a_numpy_file_without_a_test_part_is_shuffled_before_images_are_held_out(tmp_path):
    images, labels = np.zeros((100, 4, 4, 1), np.uint8), np.repeat(np.arange(2), 50)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    dataset = data.load(str(tmp_path / "set.npz"), validation_examples=40)
    assert (dataset.train_size, dataset.eval_size, dataset.eval_split) == (60, 40, "validation")
    assert set(pixels_of(dataset, dataset.evaluation())[1]) == {0, 1}


def test_refused_folders(tmp_path):
    def refused(message, **options):
        with pytest.raises(ValueError, match=message):
            data.load("folder", **{"data_dir": str(tmp_path), **options})

    refused("data_dir must be given with dataset=folder", data_dir=None)
    refused("data_dir must be a directory of images .*'no such directory'", data_dir="no such directory")
    refused("data_dir must hold images of two or more classes .* with 0")
    write_images(tmp_path / "train")
    write_images(tmp_path / "validation" / "birds")
    refused(r"must hold images of the classes of train alone .*received 'birds'")
    for path in (tmp_path / "validation").rglob("*.png"):
        path.unlink()
    refused("validation must hold images of the classes cats, dogs, owls; received none")
    (tmp_path / "validation").rename(tmp_path / "elsewhere")
    content = (tmp_path / "train" / "owls" / "2.png").read_bytes()
    for damage in (b"no image", content[:-40]):
        (tmp_path / "train" / "owls" / "2.png").write_bytes(damage)
        refused("owls/2.png cannot be read as an image: restore the file or remove it")


def test_refused_files(tmp_path):
    path = tmp_path / "set.npz"
    with pytest.raises(ValueError, match="dataset must be a file that exists"):
        data.load(str(path))
    path.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"set.npz is damaged, or no .npz file"):
        data.load(str(path))
    np.savez(path, pictures=np.zeros(3))
    with pytest.raises(ValueError, match=r"dataset must hold the arrays images and labels; .* with pictures"):
        data.load(str(path))
    np.savez(path, images=np.zeros((3, 4, 4)), labels=np.arange(3))
    with pytest.raises(ValueError, match=r"images of .*set.npz must be uint8"):
        data.load(str(path))
