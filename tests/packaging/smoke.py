"""What an installed package must do outside the checkout; run by file name, prints where the package came from."""

import pathlib
import sys
import tempfile

import keras
import numpy as np

import tf_largebatch as lb


def main() -> None:
    net = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8, 8, 1)), rng.integers(0, 10, 64)
    model = lb.LargeBatchModel(net)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # XLA would compile for longer than this trains.
    model.compile(lb.CLARS(0.5, gradient_norms="per_example"), loss, jit_compile=False)
    losses = model.fit(x, y, batch_size=64, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0], losses
    assert all(rate > 0 for rate in model.optimizer.layerwise_rates().values())
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "net.keras")
        net.save(path)
        np.testing.assert_allclose(keras.models.load_model(path).predict(x, verbose=0), net.predict(x, verbose=0))
    assert "tf_keras" not in sys.modules and "official" not in sys.modules
    print(pathlib.Path(lb.__file__).resolve().parent, lb.__version__)


if __name__ == "__main__":
    main()
