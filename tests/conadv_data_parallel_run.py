"""Trains ConAdvModel on one device and by keras.distribution.DataParallel on two, on JAX; prints what differs."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import numpy as np
from conadv_cases import conadv, images, network

import tf_largebatch as lb


def trained(devices):
    if devices > 1:
        used = keras.distribution.list_devices("cpu")[:devices]
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=used))
    x, y = images(24)
    model = conadv(network(), lb.CLARS(0.1), targeted=False, random_start=0.0, compiled=True)
    history = model.fit(x, y, batch_size=12, epochs=2, verbose=0, shuffle=False).history
    assert len(model.variables[0].value.sharding.device_set) == devices
    return [np.asarray(v.value) for v in model.variables], history


if __name__ == "__main__":
    (one, logs), (two, others) = trained(1), trained(2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name, values in logs.items():
        np.testing.assert_allclose(values, others[name], rtol=1e-5, atol=1e-5, err_msg=name)
    print("largest difference", max(np.abs(a - b).max() for a, b in zip(one, two, strict=True)))
