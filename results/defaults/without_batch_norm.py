"""CLARS with two caps on a network without batch normalization: digits, some 96 updates, three seeds.

    python results/defaults/without_batch_norm.py > results/defaults/without_batch_norm.md

Test accuracy in percent after the last epoch, for each seed. It is no search: the settings are those of
`defaults_cap_digits.yaml` and the package's defaults.
"""

from __future__ import annotations

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tf_largebatch as lb

UPDATES = 96
BATCH_SIZES = (128, 512)
# Trust coefficient, cap, and the constant learning rate or None for the schedule.
SETTINGS = ((0.25, 1.0, None), (0.5, 3.0, None), (0.25, 1.0, 0.3))


def network() -> keras.Model:
    """Builds two convolutions and a dense layer."""
    layers = [keras.Input((8, 8, 1))]
    layers += [keras.layers.Conv2D(filters, 3, activation="relu") for filters in (32, 64)]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])


def accuracy(images: list[np.ndarray], batch_size: int, eta: float, cap: float, rate: float | None, seed: int) -> float:
    """Trains once and returns the test accuracy in percent."""
    x, x_test, y, y_test = images
    steps = -(-len(x) // batch_size)
    epochs = UPDATES // steps
    keras.utils.set_random_seed(seed)
    model = lb.LargeBatchModel(network())
    learning_rate = lb.large_batch_schedule(steps_per_epoch=steps, epochs=epochs) if rate is None else rate
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(lb.CLARS(learning_rate, eta=eta, max_rate=cap), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0)
    return 100 * model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]


def main() -> None:
    """Prints a Markdown table."""
    digits = load_digits()
    images = train_test_split(digits.images[..., None] / 16, digits.target, random_state=0)
    print("# Without batch normalization\n\nTest accuracy in percent, three seeds; see without_batch_norm.py.\n")
    print("| eta | cap | learning rate | " + " | ".join(f"batch {size}" for size in BATCH_SIZES) + " |")
    print("|---" * (3 + len(BATCH_SIZES)) + "|")
    for eta, cap, rate in SETTINGS:
        runs = [[accuracy(images, size, eta, cap, rate, seed) for seed in range(3)] for size in BATCH_SIZES]
        cells = [", ".join(f"{value:.1f}" for value in seeds) for seeds in runs]
        name = "falls from 1 to 0" if rate is None else f"constant {rate}"
        print(f"| {eta} | {cap} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
