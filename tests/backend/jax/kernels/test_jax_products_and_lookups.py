"""JAX only: products, lookups, depthwise convolutions and batch norm against NumPy, float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tf_largebatch.backend.jax.kernels import (
    chunks,
    depthwise,
    depthwise_direct,
    depthwise_pallas,
    lookup,
    matmul,
)
from tf_largebatch.norms.device import compiling_for
from tf_largebatch.norms.window import Window

pytestmark = pytest.mark.each_value

RNG = np.random.default_rng(0)
ROWS, POSITIONS, WIDTH = 40, 16, 5


def normal(*shape):
    return RNG.normal(size=shape).astype("float32") + 0.25


# a, and the outputs of d.
PRODUCTS = {
    "one position": ((6, 1, 7), 5),
    "few positions, many channels": ((6, 3, 30), 40),
    "many positions": ((6, 20, 4), 5),
    "several matrices": ((6, 3, 20, 4), 5),
    "several matrices of one position": ((6, 3, 1, 4), 5),
    "one example": ((1, 9, 4), 5),
}


@pytest.mark.parametrize("kind", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("budget", [None, 1000])
def test_products(name, kind, budget, monkeypatch):
    if budget:
        monkeypatch.setitem(chunks.CHUNK_BYTES, kind, budget)
    shape, outputs = PRODUCTS[name]
    a, d = normal(*shape), normal(*shape[:-1], outputs)
    g = np.einsum("...td,...tp->...dp", a.astype("float64"), d.astype("float64"))
    squares = np.square(g).sum(tuple(range(1, g.ndim)))
    with compiling_for(kind):
        found, together, each, directly = jax.jit(
            lambda a, d: (
                matmul.squared_norms(a, d),
                matmul.norms_and_gradient(a, d),
                matmul.contributions(a, d),
                matmul.norms_and_gradient_directly(a, d),
            )
        )(a, d)
    np.testing.assert_allclose(found, squares, rtol=1e-5)
    np.testing.assert_allclose(each, g, rtol=1e-4, atol=1e-5)
    for squares_and_sum in [directly, *([] if together is None else [together])]:
        np.testing.assert_allclose(squares_and_sum[0], squares, rtol=1e-5)
        np.testing.assert_allclose(squares_and_sum[1], g.sum(0), rtol=1e-4, atol=1e-5)


def test_large_products_go_in_blocks_on_a_tpu(monkeypatch):
    monkeypatch.setattr(matmul, "_FUSED_ENTRIES", 20)
    for inputs, outputs in ((4, 24), (24, 4)):
        a, d = normal(3, 50, inputs), normal(3, 50, outputs)
        g = np.einsum("btd,btp->bdp", a.astype("float64"), d)
        with compiling_for("tpu"):
            squares, total = matmul.norms_and_gradient(jnp.asarray(a), jnp.asarray(d))
        np.testing.assert_allclose(squares, np.square(g).sum((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(total, g.sum(0), rtol=1e-4)


def distinct(batch):
    return np.stack([RNG.permutation(ROWS)[:POSITIONS] for _ in range(batch)])


IDS = {
    "distinct": distinct,
    "some repeated": lambda batch: RNG.integers(0, ROWS, (batch, POSITIONS)),
    "most repeated": lambda batch: RNG.integers(0, 6, (batch, POSITIONS)),
    "all the same": lambda batch: np.full((batch, POSITIONS), 3),
    "one example's all the same": lambda batch: np.where(np.arange(batch)[:, None] == 1, 7, distinct(batch)),
    "outside the table": lambda batch: RNG.integers(-20, ROWS + 20, (batch, POSITIONS)) // 2 * 2,
    "all outside the table": lambda batch: np.full((batch, POSITIONS), ROWS),
    "one position": lambda batch: RNG.integers(0, ROWS + 5, (batch, 1)),
}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("name", IDS)
def test_lookups(name, kind, monkeypatch):
    monkeypatch.setitem(chunks.CHUNK_BYTES, kind, 4 * 4 * POSITIONS**2)  # a few examples at a time
    ids = IDS[name](7).astype("int32")
    d = normal(*ids.shape, WIDTH)
    each = np.zeros((7, ROWS, WIDTH))
    for ids_i, d_i, g_i in zip(ids, d, each, strict=True):
        inside = (ids_i >= 0) & (ids_i < ROWS)
        np.add.at(g_i, ids_i[inside], d_i[inside])
    with compiling_for(kind):
        found = jax.jit(lambda ids, d: lookup.squared_norms(ids, d, ROWS))(ids, d)
        # The squares of repeated rows may be far smaller than those of their terms.
        np.testing.assert_allclose(found, np.square(each).sum((1, 2)), rtol=1e-5)
        np.testing.assert_allclose(lookup.contributions(jnp.asarray(ids), d, ROWS), each, atol=1e-5)


def test_lookups_in_half_precision_add_up_in_float32():
    ids = np.zeros((1, 3000), "int32")
    d = np.full((1, 3000, 2), 0.01, "float16")
    expected = 2 * (3000 * float(np.float16(0.01))) ** 2
    for form in (lookup.squared_norms_by_runs, lookup.squared_norms_by_pairs):
        np.testing.assert_allclose(form(jnp.asarray(ids), jnp.asarray(d), ROWS), [expected], rtol=1e-4)


def test_no_array_of_a_lookup_has_the_size_of_the_table():
    ids, d = jax.ShapeDtypeStruct((4, 600), jnp.int32), jax.ShapeDtypeStruct((4, 600, 8), jnp.float32)
    for kind in ("cpu", "gpu"):
        with compiling_for(kind):
            text = str(jax.make_jaxpr(lambda ids, d: lookup.squared_norms(ids, d, 123_457))(ids, d))
        assert "123457," not in text


# input sizes, kernel, strides, padding, dilation, channels, multiplier
DEPTHWISE = {
    "1d": ((9,), (3,), (1,), "same", (1,), 3, 2),
    "1d causal, dilated": ((9,), (3,), (1,), "causal", (2,), 3, 1),
    "same": ((6, 7), (3, 3), (1, 1), "same", (1, 1), 3, 1),
    "stride 2, multiplier": ((7, 8), (3, 3), (2, 2), "same", (1, 1), 3, 2),
    "5 x 5 on a small map": ((3, 3), (5, 5), (1, 1), "same", (1, 1), 4, 1),
    "dilated, valid": ((9, 9), (3, 3), (1, 1), "valid", (2, 2), 3, 2),
    "rows": ((4, 6, 7), (1, 3, 3), (1, 1, 1), "same", (1, 1, 1), 3, 1),
}


FORMS = {
    "direct": depthwise_direct.norms_and_gradient,
    "pallas": functools.partial(depthwise_pallas.norms_and_gradient, interpret=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise(name, form, monkeypatch):
    monkeypatch.setattr(depthwise_pallas, "_PROGRAMS", 2)  # several examples to a program
    sizes, kernel, strides, padding, rates, channels, multiplier = DEPTHWISE[name]
    window = Window(kernel, strides, padding, rates)
    if padding == "valid":
        out = [(n - (k - 1) * r - 1) // s + 1 for n, k, s, r in zip(sizes, kernel, strides, rates, strict=True)]
    else:
        out = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
    a, d = normal(4, *sizes, channels), normal(4, *out, channels * multiplier)
    padded = np.pad(a, [(0, 0), *window.padding_of(a, out), (0, 0)]).astype("float64")
    g = np.zeros((4, *kernel, channels, multiplier))
    for offset in np.ndindex(*kernel):
        for t in np.ndindex(*out):
            at = tuple(p * s + o * r for p, o, s, r in zip(t, offset, strides, rates, strict=True))
            x, y = padded[(slice(None), *at)], d[(slice(None), *t)].reshape(4, channels, multiplier)
            g[(slice(None), *offset)] += x[..., None] * y
    if form == "pallas" and not depthwise_pallas.applies(a, d, window):
        assert multiplier > 1
        return
    squares, total = jax.jit(lambda a, d: FORMS[form](a, d, window))(a, d)
    each = depthwise.contributions(jnp.asarray(a), jnp.asarray(d), window)
    np.testing.assert_allclose(squares, np.square(g).sum(tuple(range(1, g.ndim))), rtol=1e-5)
    np.testing.assert_allclose(total, g.sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(each, g, rtol=1e-4, atol=1e-4)


def test_the_depthwise_kernel_lowers_for_a_gpu_and_is_chosen_there():
    a, d = jax.ShapeDtypeStruct((8, 14, 14, 96), jnp.bfloat16), jax.ShapeDtypeStruct((8, 7, 7, 96), jnp.bfloat16)
    window = Window((3, 3), (2, 2), "same", (1, 1))
    with compiling_for("gpu"):
        traced = jax.jit(lambda a, d: depthwise.norms_and_gradient(a, d, window)).trace(a, d)
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert depthwise.cheapest_form(a, d, window) is depthwise_direct
