"""JAX only: each form of a convolution's norms, chosen explicitly, against sums in NumPy, float64."""

from __future__ import annotations

import functools
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolution_geometries import GEOMETRIES, random_case, reference

from tf_largebatch.backend.jax.kernels import (
    convolution,
    convolution_direct,
    convolution_gram,
    convolution_pallas,
    convolution_tpu,
)
from tf_largebatch.norms.device import compiling_for
from tf_largebatch.norms.window import Window

pytestmark = pytest.mark.each_value


class Interpreted:
    """The Pallas kernel as the CPU interprets it, with tiles that leave remainders in small geometries too."""

    applies = staticmethod(convolution_pallas.applies)
    tiles = convolution_pallas.Tiles(rows=16, columns=8, positions=16)
    norms_and_gradient = staticmethod(
        functools.partial(convolution_pallas.norms_and_gradient, interpret=True, tiles=tiles)
    )
    squared_norms = staticmethod(functools.partial(convolution_pallas.squared_norms, interpret=True, tiles=tiles))


FORMS = {
    "direct": convolution_direct,
    "gram": convolution_gram,
    "pallas": Interpreted,
    "tpu": convolution_tpu,
    "chosen": convolution,
}
# Whole tiles, rows of one kernel offset each; and several examples to a program.
GEOMETRIES["whole tiles"] = ((4, 4), (3, 3), (1, 1), "same", (1, 1), 1, 16, 8)
GEOMETRIES["patches"] = ((6, 8), (3, 2), (3, 2), "valid", (1, 1), 1, 3, 4)
GEOMETRIES["few patches, many channels"] = ((2, 4, 2), (1, 2, 2), (1, 2, 2), "same", (1, 1, 1), 1, 6, 32)


def applies(form, *arguments) -> bool:
    return not hasattr(form, "applies") or form.applies(*arguments)


def compiled(form, window, groups):
    """The form's squared norms, and both sums or None, as one compiled function of `a` and `d`."""

    def both(a, d):
        together = form.norms_and_gradient(a, d, window, groups) if hasattr(form, "norms_and_gradient") else None
        return form.squared_norms(a, d, window, groups), together

    return jax.jit(both)


def check(form, a, d, window, groups):
    exact = [np.asarray(t, "float32") for t in (a, d)]
    squares, gradient = reference(*exact, window, groups)
    found, together = compiled(form, window, groups)(a, d)
    # float32 sums of a few hundred products.
    np.testing.assert_allclose(found, squares, rtol=2e-5)
    if together is not None:
        assert together[0].dtype == together[1].dtype == jnp.float32
        np.testing.assert_allclose(together[0], squares, rtol=2e-5)
        np.testing.assert_allclose(together[1], gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_form_gives_the_norms_and_the_gradient(name, form):
    a, d, window, groups = random_case(name)
    if not applies(FORMS[form], a, d, window, groups):
        assert groups > 1 or (form == "tpu" and a.ndim != 4)
        return
    check(FORMS[form], a, d, window, groups)


@pytest.mark.parametrize("batch, groups", [(1, 264), (7, 3), (8, 4)])
def test_pallas_programs_share_the_examples(batch, groups, monkeypatch):
    monkeypatch.setattr(convolution_pallas, "_GROUPS", groups)
    check(Interpreted, *random_case("1d, stride 3", batch))


@pytest.mark.parametrize("batch, chunk", [(1, 4), (4, 4), (6, 2), (7, 3), (5, 1)])
@pytest.mark.parametrize("form", ["direct", "gram"])
def test_chunks(form, batch, chunk, monkeypatch):
    for module in (convolution_direct, convolution_gram):
        monkeypatch.setattr(module, "chunk_of", lambda size: chunk)
    check(FORMS[form], *random_case("1d, stride 3", batch))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "kind, form", [("cpu", "direct"), ("gpu", "direct"), ("gpu", "gram"), ("gpu", "pallas"), ("tpu", "tpu")]
)
def test_half_precision_is_multiplied_exactly_and_added_in_float32(kind, form, dtype):
    a, d, window, groups = random_case("same")
    with compiling_for(kind):
        check(FORMS[form], jnp.asarray(a, dtype), jnp.asarray(d, dtype), window, groups)


# kind, batch, input sizes, kernel, stride, channels, outputs, groups: form, whether all norms are free
CHOICES = {
    ("gpu", 256, (224, 224), 7, 2, 3, 64, 1): (convolution_pallas, True),
    ("gpu", 256, (56, 56), 3, 1, 64, 64, 1): (convolution_pallas, False),
    ("gpu", 256, (56, 56), 1, 1, 64, 256, 1): (convolution_direct, True),
    ("gpu", 256, (28, 28), 1, 1, 512, 128, 1): (convolution_direct, False),
    ("gpu", 256, (14, 14), 3, 1, 256, 256, 1): (convolution_gram, False),
    ("gpu", 256, (28, 28), 3, 2, 256, 256, 1): (convolution_gram, False),
    ("gpu", 256, (56, 56), 3, 2, 128, 128, 1): (convolution_pallas, False),
    ("gpu", 256, (7, 7), 1, 1, 512, 2048, 1): (convolution_gram, False),
    ("gpu", 4096, (8, 8), 3, 1, 64, 64, 1): (convolution_pallas, False),
    ("gpu", 64, (14, 14), 3, 1, 256, 256, 32): (convolution_direct, False),
    ("gpu", 4, (16, 32, 32), 3, 1, 16, 32, 1): (convolution_pallas, False),
    ("gpu", 2**20, (64, 64), 3, 1, 16, 16, 1): (convolution_direct, False),  # more entries than 32 bits count
    ("tpu", 96, (56, 56), 1, 1, 64, 256, 1): (convolution_tpu, True),
    ("tpu", 96, (56, 56), 3, 1, 64, 64, 1): (convolution_tpu, False),
    ("tpu", 96, (7, 7), 1, 1, 512, 2048, 1): (convolution_gram, False),
    ("tpu", 96, (400,), 3, 1, 64, 64, 1): (convolution_direct, False),
    ("cpu", 256, (32, 32), 3, 1, 16, 16, 1): (convolution_direct, False),
    ("cpu", 16, (7, 7), 3, 1, 512, 512, 1): (convolution_gram, False),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choices(case):
    kind, batch, sizes, kernel, stride, channels, outputs, groups = case
    axes = len(sizes)
    window = Window((kernel,) * axes, (stride,) * axes, "same", (1,) * axes)
    a = jax.ShapeDtypeStruct((batch, *sizes, channels), jnp.bfloat16)
    d = jax.ShapeDtypeStruct((batch, *(math.ceil(n / stride) for n in sizes), outputs), jnp.bfloat16)
    with compiling_for(kind):
        form, free = CHOICES[case]
        assert convolution.cheapest_form(a, d, window, groups) is form
        assert convolution.all_norms_are_free(a, d, window, groups) is free


def test_patches_that_do_not_overlap_have_the_forms_of_pointwise_layers():
    a, d = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.bfloat16), jax.ShapeDtypeStruct((8, 14, 14, 384), jnp.bfloat16)
    window, free = Window((16, 16), (16, 16), "valid", (1, 1)), []
    with compiling_for("gpu"):
        assert jax.eval_shape(lambda a, d: convolution.norms_and_gradient(a, d, window, 1), a, d) is None  # Gram
        jax.eval_shape(lambda a, d: free.append(convolution.all_norms_are_free(a, d, window, 1)), a, d)
        shapes = str(jax.make_jaxpr(lambda a, d: convolution.squared_norms(a, d, window, 1))(a, d))
    assert free == [False]
    assert "[8,196,768]" in shapes and "224,224,224,224" not in shapes


@pytest.mark.long
def test_a_batch_that_is_spread_over_devices_is_measured_where_it_lies():
    script = pathlib.Path(__file__).with_name("spread_over_devices.py")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_direct_form_is_there_without_triton(monkeypatch):
    monkeypatch.setattr(convolution_pallas, "triton", None)
    a, d, window, groups = random_case("same")
    with compiling_for("gpu"):
        assert convolution.cheapest_form(a, d, window, groups) is convolution_direct


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["same", "7 x 7, stride 2", "3d", "whole tiles"])
def test_the_pallas_kernel_lowers_for_a_gpu(name, dtype):
    a, d, window, groups = random_case(name)
    a, d = jnp.asarray(a, dtype), jnp.asarray(d, dtype)
    with compiling_for("gpu"):
        traced = jax.jit(lambda a, d: convolution_pallas.norms_and_gradient(a, d, window, groups)).trace(a, d)
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
