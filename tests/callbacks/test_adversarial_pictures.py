"""When adversarial images are drawn while a model trains."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from conadv_cases import conadv, images
from selection import long

from tf_largebatch.callbacks import AdversarialPictures

pytestmark = pytest.mark.quick_on_jax("test_refusals")


@pytest.mark.parametrize(("every", "drawn"), [long(None, ["3"]), (2, ["2", "3"]), long(1, ["1", "2", "3"])])
def test_when_pictures_are_drawn(every, drawn, tmp_path):
    x, y = images(12)
    x = np.concatenate([x, x[..., :1]], axis=-1)
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model = conadv(net)
    pictures = AdversarialPictures(tmp_path / "{epoch}.png", x, y, every=every)
    model.fit(x, y, batch_size=6, epochs=3, verbose=0, callbacks=[pictures])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"000{epoch}.png" for epoch in drawn]


def test_pictures_of_a_model_with_two_outputs(tmp_path):
    """Without answers, which are neither right nor wrong."""
    inputs = keras.Input((6, 6, 3))
    flat = keras.layers.Flatten()(inputs)
    model = conadv(keras.Model(inputs, [keras.layers.Dense(n)(flat) for n in (1, 2)]), loss="mse", targeted=False)
    y = [np.zeros((9, 1), "float32"), np.ones((9, 2), "float32")]
    pictures = AdversarialPictures(tmp_path / "picture.png", np.full((9, 6, 6, 3), 100.0, "float32"), y)
    pictures.set_model(model)
    pictures.on_epoch_end(0)
    pictures.on_train_end()
    assert (tmp_path / "picture.png").exists()
    with pytest.raises(ValueError, match="y must be one label for each image"):
        AdversarialPictures(tmp_path / "picture.png", np.zeros((9, 6, 6, 3)), {"a": y[0], "b": y[1][:3]})


def test_refusals(tmp_path):
    x, y = images(4)
    with pytest.raises(ValueError, match="every must be a positive integer or None; received every=0"):
        AdversarialPictures(tmp_path / "a.png", x, y, every=0)
    model = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"model must be a ConAdvModel.*received model=<Sequential"):
        model.fit(x, y, verbose=0, callbacks=[AdversarialPictures(tmp_path / "a.png", x, y)])
