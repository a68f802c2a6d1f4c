"""What a package installed with the extra `garden` must do outside the checkout; run by file name."""

import pathlib

import numpy as np
import tf_keras
from official.core import exp_factory

import tf_largebatch as lb
from tf_largebatch.model_garden import registry_imports  # noqa: F401  (it registers)
from tf_largebatch.tf_keras.optimizers import CLARS


def main() -> None:
    net = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(16, "relu"), tf_keras.layers.Dense(10)])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)), rng.integers(0, 10, 64)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(CLARS(0.5, gradient_norms="replica"), loss)
    losses = net.fit(x, y, batch_size=64, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0], losses
    experiment = exp_factory.get_exp_config("clars_resnet_cifar10")
    assert experiment.trainer.optimizer_config.optimizer.type == "clars"
    print(pathlib.Path(lb.__file__).resolve().parent, lb.__version__)


if __name__ == "__main__":
    main()
