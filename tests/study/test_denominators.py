"""What CLARS's rate divides by in studies."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tf_largebatch.study import denominators


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_the_signal_is_freed_of_noise_down_to_its_floor(q):
    point = {"denominator": "signal", "norm_exponent": q}
    optimizer = denominators.make_clars(point, batch_size=5)(1.0, eta=0.1)
    assert optimizer.reads_per_example_norms
    gradient = np.asarray([3.0, 4.0], "float32")
    for mean_square, signal in ((29.0, 24.0), (1000.0, 2.5)):  # 25 - (29 - 25) / 4; the floor, a tenth of 25
        found = optimizer.measured_denominator(np.float32(mean_square**0.5), gradient)
        np.testing.assert_allclose(found, signal ** ((1 - q) / 2) * mean_square ** (q / 2), rtol=1e-5)


def test_the_root_mean_square_is_handed_over_in_place_of_the_mean():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(8, 3)).astype("float32"), random.normal(size=(8, 1)).astype("float32")
    dense = keras.layers.Dense(1, use_bias=False)
    network = keras.Sequential([keras.Input((3,)), dense])
    point = {"denominator": "root_mean_square"}
    model = denominators.wrapper(point)(network)
    # A learning rate of 0: the norms are those of the initial weights.
    model.compile(denominators.make_clars(point, 8)(0.0, eta=0.1), "mse", run_eagerly=True)
    errors = x @ keras.ops.convert_to_numpy(dense.kernel) - y
    norms = np.linalg.norm(2 * errors * x, axis=1)
    model.train_on_batch(x, y)
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    (found,) = model.optimizer.gradient_norms().values()
    np.testing.assert_allclose(found, np.sqrt(np.mean(np.square(norms))), rtol=1e-5)
    assert found > np.mean(norms) * 1.01
