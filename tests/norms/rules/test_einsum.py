"""The rule of EinsumDense by itself: what the letters of an equation are for, and which equations are refused."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
from keras import layers as L
from keras import ops

from tf_largebatch.norms.rules.bias import Bias
from tf_largebatch.norms.rules.einsum import Einsum, Letters, einsum_dense, einsum_letters, refuse_einsum

RNG = np.random.default_rng(0)

# Equation, rank of the input; the letters of input, kernel and output; matrices, inputs, outputs, positions.
EQUATIONS = {
    "ab,bc->ac": (2, ("ab", "bc", "ac"), ("", "b", "c", "")),
    " a b , b c -> a c ": (2, ("ab", "bc", "ac"), ("", "b", "c", "")),
    "abc,cde->abde": (3, ("abc", "cde", "abde"), ("", "c", "de", "b")),
    "abcd,cde->abe": (4, ("abcd", "cde", "abe"), ("", "cd", "e", "b")),
    "btec,ecd->btde": (4, ("btec", "ecd", "btde"), ("e", "c", "d", "t")),
    "abc,cd->ad": (3, ("abc", "cd", "ad"), ("", "c", "d", "")),
    "...x,xy->...y": (3, ("ABx", "xy", "ABy"), ("", "x", "y", "B")),
    "A...x,xy->A...y": (4, ("ABCx", "xy", "ABCy"), ("", "x", "y", "BC")),
    "a...x,xA->a...A": (3, ("aBx", "xA", "aBA"), ("", "x", "A", "B")),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_letters(equation):
    rank, expected, kinds = EQUATIONS[equation]
    assert einsum_letters(equation, rank) == expected
    letters = Letters(*expected)
    assert (letters.matrices, letters.inputs, letters.outputs, letters.positions) == kinds


def test_as_matrices():
    t = RNG.normal(size=(2, 3, 4, 5, 6)).astype("float32")
    letters = Letters("btecs", "ecd", "btde")  # s: the input alone
    found = ops.convert_to_numpy(letters.as_matrices(t, letters.a, letters.inputs))
    np.testing.assert_allclose(found, t.sum(-1).transpose(0, 2, 1, 3), rtol=1e-5, atol=1e-6)
    letters = Letters("bstc", "cd", "bstd")
    t = RNG.normal(size=(2, 3, 4, 5)).astype("float32")
    np.testing.assert_array_equal(letters.as_matrices(t, letters.a, letters.inputs), t.reshape(2, 12, 5))


@pytest.mark.parametrize("batched", [True, False])
def test_as_kernel(batched):
    letters = Letters("btec", "dce", "btde")
    sizes = {"e": 2, "c": 3, "d": 4}
    g = RNG.normal(size=(5, 2, 3, 4)).astype("float32")  # matrices e, inputs c, outputs d
    g = g if batched else g[0]
    found = ops.convert_to_numpy(letters.as_kernel(g, sizes, batched))
    np.testing.assert_array_equal(found, np.moveaxis(g, [-1, -2, -3], [-3, -2, -1]))


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("btc,cd->btd", ((3, 4, 5), (3, 4, 6))),
        ("btc,dc->btd", ((3, 4, 5), (3, 4, 6))),
        ("btec,edc->btde", ((3, 4, 2, 5), (3, 4, 6, 2))),
        ("...c,cd->...d", ((3, 2, 5), (3, 2, 6))),
    ],
)
def test_norms_and_gradient(equation, shapes):
    a, d = (RNG.normal(size=shape).astype("float32") for shape in shapes)
    left, right = equation.replace("...", "bt").split("->")
    x, w = left.split(",")
    each = np.stack([np.einsum(f"{x},{right}->{w}", a[i : i + 1], d[i : i + 1]) for i in range(3)])
    contraction = Einsum(ops.convert_to_tensor(a), equation)
    d = ops.convert_to_tensor(d)
    squares = (each**2).reshape(3, -1).sum(1)
    np.testing.assert_allclose(contraction.contributions(d, slice(None)), each, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(contraction.squared_norms(d, slice(1, 3)), squares[1:], rtol=1e-5)
    together = contraction.norms_and_gradient(d)
    assert together is not None, "with few positions both come from the contributions"
    np.testing.assert_allclose(together[0], squares, rtol=1e-5)
    np.testing.assert_allclose(together[1], each.sum(0), rtol=1e-5, atol=1e-5)


class Uses:
    """Stands in for a recorder: notes what is recorded."""

    def __init__(self):
        self.recorded = []

    def value(self, variable):
        return variable

    def record(self, variable, y, contraction):
        self.recorded.append((variable, type(contraction)))
        return y


@pytest.mark.parametrize("bias_axes, activation", [(None, None), ("d", None), ("bd", "relu"), (None, "tanh")])
def test_the_layer(bias_axes, activation):
    layer = L.EinsumDense("abc,cd->abd", (4, 3), bias_axes=bias_axes, activation=activation)
    layer.build((2, 4, 5))
    for variable in layer.trainable_variables:
        variable.assign(RNG.normal(size=variable.shape))
    x, uses = ops.convert_to_tensor(RNG.normal(size=(2, 4, 5)).astype("float32")), Uses()
    np.testing.assert_allclose(einsum_dense(layer, uses, x), layer(x), rtol=1e-6, atol=1e-6)
    assert uses.recorded == list(zip(layer.trainable_variables, (Einsum, Bias), strict=False))


def test_contractions_do_not_change():
    for frozen in Einsum(np.ones((2, 3)), "ab,bc->ac"), Letters("ab", "bc", "ac"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen.a = None


def test_rows_become_positions():
    a = ops.convert_to_tensor(RNG.normal(size=(6, 4, 5)).astype("float32"))
    of_rows = Einsum(a, "abc,cd->abd").over_rows(3, 2)
    assert of_rows.equation == "aebc,cd->aebd"
    np.testing.assert_array_equal(ops.convert_to_numpy(of_rows.a), ops.convert_to_numpy(a).reshape(3, 2, 4, 5))
    assert Einsum(a, "...c,cd->...d").over_rows(3, 2).equation == "AaBc,cd->AaBd"


@pytest.mark.parametrize(
    "equation, reason",
    [
        ("ab,bc->ac", None),
        ("...b,bc->...c", None),
        ("a...b,bc->a...c", None),
        ("abc,cd->ad", None),
        ("btec,ecd->btde", None),
        ("ab,bc->ca", "does not keep the examples on the first axis"),
        ("ab,bc->bc", "does not keep the examples on the first axis"),
        ("ab,abc->ac", "does not keep the examples on the first axis"),
        ("ab,bcd->ac", "sums the kernel over an axis of its own"),
        ("ab,bc->acc", "takes a diagonal"),
        ("abb,bc->ac", "takes a diagonal"),
        ("ab,bbc->ac", "takes a diagonal"),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_what_is_refused(equation, reason, lora):
    found = refuse_einsum(types.SimpleNamespace(equation=equation, lora_enabled=lora))
    if reason is None:
        assert found == ("LoRA is enabled" if lora else None)
    else:
        assert found == f"equation {equation!r} {reason}"
