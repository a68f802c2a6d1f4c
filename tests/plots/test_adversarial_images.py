"""plot_adversarial_images: what the rows, the scale and the captions show."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tf_largebatch.callbacks import plot_adversarial_images


def rgb(n=3, channels=3, seed=0):
    return np.random.default_rng(seed).uniform(20, 235, (n, 6, 6, channels)).astype("float32")


def shown(figure):
    """The rows of pictures, [3][n], what stands below them, and the rows' names."""
    axes = np.array(figure.axes).reshape(3, -1)
    pictures = [[np.asarray(axis.images[0].get_array()) for axis in row] for row in axes]
    return pictures, [[a.get_xlabel() for a in row] for row in axes], [row[0].get_ylabel() for row in axes]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_rows_and_their_scale(channels):
    x = rgb(channels=channels)
    change = np.random.default_rng(1).uniform(-1, 1, x.shape).astype("float32")
    change[0, 0, 0, 0], change[1, 1, 1, 0] = -4.0, 2.0
    mean, std = 0.5, 0.25
    standardized, adversarial = ((v / 255 - mean) / std for v in (x, x + change))
    value_range = [((0 - mean) / std, (1 - mean) / std)] * channels
    figure = plot_adversarial_images(standardized, adversarial, [0, 1, 2], value_range=value_range)
    (clean, amplified, attacked), captions, names = shown(figure)
    for i in range(3):
        np.testing.assert_allclose(clean[i], x[i].squeeze() / 255, atol=1e-5)
        np.testing.assert_allclose(attacked[i], (x[i] + change[i]).squeeze() / 255, atol=1e-5)
    assert names == ["clean", "perturbation,\n31.9 times (grey: 0,\nat most 4 of 255)", "adversarial"]
    # Full black is the largest change, -4; half of it the other way is halfway to white.
    np.testing.assert_allclose(amplified[0].reshape(6, 6, channels)[0, 0, 0], 0.0, atol=1e-4)
    np.testing.assert_allclose(amplified[1].reshape(6, 6, channels)[1, 1, 0], 0.75, atol=1e-4)
    assert captions == [["0", "1", "2"], ["", "", ""], ["", "", ""]]


def test_captions_say_what_is_right(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.layers[-1].bias.assign([0.0, 1e6, 0.0])  # says 1, whatever it sees
    x, path = rgb(2), tmp_path / "new" / "picture.png"
    names = ["cat", "dog", "frog"]
    figure = plot_adversarial_images(x, x, np.eye(3)[[1, 2]], model=model, class_names=names, path=path)
    _, captions, rows = shown(figure)
    assert captions[0] == captions[2] == ["dog\n(right)", "dog\n(is frog)"]
    assert rows[1] == "no perturbation"
    assert path.read_bytes().startswith(b"\x89PNG") and len(list(path.parent.iterdir())) == 1


def test_what_are_no_images():
    with pytest.raises(ValueError, match=r"images of one shape .*received shapes \(3, 6, 6, 3\) and \(2, 6, 6, 3\)"):
        plot_adversarial_images(rgb(3), rgb(2), [0, 1, 2])


def test_without_labels_and_answers():
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    _, captions, _ = shown(plot_adversarial_images(rgb(2), rgb(2), None, model=model))
    assert captions == [["", ""]] * 3
    with pytest.raises(ValueError, match=r"model must be a classifier with one score for each class.*pass model=None"):
        plot_adversarial_images(rgb(2), rgb(2), np.zeros((2, 1)), model=model)
