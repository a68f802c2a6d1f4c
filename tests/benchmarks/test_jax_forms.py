"""JAX only: the forms of a convolution's norms in JAX against a gradient an example, and the steps that use them."""

from __future__ import annotations

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("the forms are those of Keras on JAX", allow_module_level=True)

from benchmarks import jax_forms, jax_step


def layer(batch, pixels, channels, outputs, stride):
    random, out = np.random.default_rng(0), -(-pixels // stride)
    a = random.normal(size=(batch, pixels, pixels, channels)).astype("float32")
    return a, random.normal(size=(batch, out, out, outputs)).astype("float32")


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [((3, 6, 16, 16), 3, 1), ((2, 7, 3, 16), 3, 2), ((2, 5, 20, 24), 1, 1), ((2, 5, 8, 40), 1, 2)],
)
def test_every_form_gives_the_norms_and_the_gradient(shape, kernel, stride):
    a, d = layer(*shape, stride)
    each = [np.asarray(jax_forms.weight_gradient(a[i : i + 1], d[i : i + 1], kernel, stride)) for i in range(len(a))]
    squares, gradient = [np.square(g).sum() for g in each], sum(each)
    for name, form in jax_forms.FORMS.items():
        options = {"interpret": True} if name == "kernel" else {}
        found = form(a, d, kernel, stride, **options)
        # float32 sums of up to 49 products in another order.
        np.testing.assert_allclose(found[0], squares, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(found[1], gradient, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.long
def test_the_measured_step_has_the_plain_steps_gradient_direction():
    network = jax_step.Network(
        [([(4, 3, 1), (4, 3, 1)], False), ([(8, 3, 2), (8, 3, 1)], True)], (4, 3, 1), True, "float32"
    )
    w = network.parameters(8)
    v = {name: np.zeros_like(value) for name, value in w.items()}
    images, labels = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32"), np.arange(4)
    plain = jax_step.plain_step(network)(w, v, images, labels)[1]
    measured = jax_step.measured_step(network, 4, 4)(w, v, images, labels)[1]
    for name, g in plain.items():
        g, other = np.ravel(g), np.ravel(measured[name])
        assert g @ other / np.sqrt((g @ g) * (other @ other)) == pytest.approx(1, abs=1e-5), name
