"""Runs cases of ConAdvModel on the backend of KERAS_BACKEND and writes what each step left: OUT.npz.

python lock_step_conadv_run.py OUT CASE ...

It also saves each model in the middle: OUT_case.keras.

Nothing in it is random: the images, labels and first weights are NumPy's, the target is the true class or the only
other one, and attacks start at the clean images.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
from keras import layers as L

import tf_largebatch as lb
from tf_largebatch.conadv.attack import ATTACKS, Attack

STEPS, BATCH, SHAPE = 20, 4, (7, 7, 2)


def mirrored(x):
    return x[:, :, ::-1]


CASES = {
    "clars": (
        3,
        lambda: lb.CLARS(0.05, eta=0.2, max_rate=None, unadapted_rate_factor=1.0),
        {"staleness": 1, "targeted": False},
    ),
    "sgd": (
        2,
        lambda: keras.optimizers.SGD(0.02, 0.9),
        {"staleness": 2, "num_steps": 2, "augment": mirrored, "adversarial_weight": 0.5},
    ),
    "sequential": (3, lambda: keras.optimizers.SGD(0.02, 0.9), {"staleness": 0, "targeted": False, "norm": "l2"}),
}


def network(classes):
    stack = [L.Rescaling(1 / 128, -1), L.Conv2D(4, 3, strides=2), L.BatchNormalization(momentum=0.5), L.ReLU()]
    net = keras.Sequential([keras.Input(SHAPE), *stack, L.Flatten(), L.Dense(classes)], name="net")
    rng = np.random.default_rng(3)
    net.set_weights(
        [w + (rng.normal(0, 0.2, w.shape) if w.ndim > 1 else 0.0) for w in map(np.zeros_like, net.get_weights())]
    )
    net.layers[2].set_weights([np.full(4, value, "float32") for value in (1.0, 0.0, 0.0, 1.0)])
    return net


def data(case):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (STEPS * BATCH, *SHAPE)).astype("float32")
    return x, rng.integers(0, CASES[case][0], STEPS * BATCH)


def run(case, found, path):
    """Notes what each step left in `found`, and saves the model in the middle."""
    classes, make_optimizer, arguments = CASES[case]
    keras.utils.clear_session()  # layers are numbered from 1, whatever ran before
    x, y = data(case)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def wrapped(**more):
        model = lb.ConAdvModel(network(classes), random_start=0.0, **{**arguments, **more})
        model.compile(make_optimizer(), loss, jit_compile=keras.backend.backend() == "jax")
        return model

    ATTACKS["gradient"] = Attack(lambda x, limits, gradient, seeds: gradient(x))
    for name in ("pgd", "gradient"):
        images = wrapped(attack=name).adversarial_images(x[:BATCH], y[:BATCH])
        found[f"{case}:0:{name}"] = keras.ops.convert_to_numpy(images)
    model = wrapped()

    def note(batch, logs):
        if keras.backend.backend() == "jax":
            model.jax_state_sync()
        for v in model.variables:
            if "seed" not in v.path:
                found[f"{case}:{batch + 1}:{v.path}"] = keras.ops.convert_to_numpy(v)
        for name, value in logs.items():
            found[f"{case}:{batch + 1}:logs/{name}"] = np.asarray(value)
        if batch + 1 == STEPS // 2:
            model.save(f"{path}_{case}.keras")
        waiting = model._in_flight.adversarial
        if waiting is not None:
            found[f"{case}:{batch + 1}:images"] = keras.ops.convert_to_numpy(waiting)

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[callback])


if __name__ == "__main__":
    everything: dict[str, np.ndarray] = {}
    for case in sys.argv[2:]:
        run(case, everything, sys.argv[1])
    np.savez(sys.argv[1], **everything)
