"""Every contraction against its definition: `y` is linear in `w`, so `G_i[k] = <d_i, y_i(e_k)>` for each basis tensor.

The reference runs the layer's own forward operation once for each entry of `w`. So the numbers are the same on every
backend, and the norms, the gradient and the parts of the batch follow from them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from keras import ops
from selection import ON_JAX, long_unless

from tf_largebatch.norms import uses
from tf_largebatch.norms.rules.bias import Bias
from tf_largebatch.norms.rules.combinators import ByGate, Folded, RowOf, WithoutFirstAxis, over_rows
from tf_largebatch.norms.rules.convolution import Convolution, DepthwiseConvolution
from tf_largebatch.norms.rules.convolution_transpose import TransposedConvolution
from tf_largebatch.norms.rules.dense import MatMul, TransposedMatMul
from tf_largebatch.norms.rules.einsum import Einsum
from tf_largebatch.norms.rules.embedding import Lookup, SharedLookup
from tf_largebatch.norms.uses import Added, PerExample
from tf_largebatch.norms.window import Window

BATCH = 4
RNG = np.random.default_rng(0)
# float32 sums of some dozens of terms in different orders.
RTOL, ATOL = 1e-5, 1e-5


def floats(*shape: int) -> Any:
    return ops.convert_to_tensor(RNG.normal(size=shape).astype("float32"))


def ids(*shape: int) -> Any:
    return ops.convert_to_tensor(RNG.integers(0, 7, shape).astype("int32"))


@dataclasses.dataclass(frozen=True)
class WithoutRows:
    """A contraction that does not know how to take rows as positions."""

    inner: Any

    def contributions(self, d: Any, examples: slice) -> Any:
        return self.inner.contributions(d, examples)


def product(*sizes: int, outputs: int = 3):
    a = floats(BATCH, *sizes)
    return MatMul(a), lambda w: ops.matmul(a, w), (sizes[-1], outputs)


def transposed(*sizes: int, outputs: int = 4):
    a = floats(BATCH, *sizes)
    return TransposedMatMul(a), lambda w: ops.matmul(a, ops.transpose(w)), (outputs, sizes[-1])


def einsum(equation: str, a_shape, w_shape):
    a = floats(BATCH, *a_shape)
    return Einsum(a, equation), lambda w: ops.einsum(equation, a, w), w_shape


def lookup(*sizes: int):
    at = ids(BATCH, *sizes)
    return Lookup(at, 7), lambda w: ops.take(w, at, axis=0), (7, 2)


def shared_lookup():
    at = ids(5)
    every = ops.broadcast_to(at, [BATCH, 5])
    return SharedLookup(at, 7), lambda w: ops.take(w, every, axis=0), (7, 2)


def bias():
    z = ops.zeros([BATCH, 4, 3, 2])
    return Bias((3,), (1, 1, 3, 1)), lambda w: z + ops.reshape(w, [1, 1, 3, 1]), (3,)


def convolution(sizes, kernel, strides=1, padding="same", dilation=1, channels=(2, 2), groups=1):
    a = floats(BATCH, *sizes, channels[0])
    window = Window(kernel, (strides,) * len(kernel), padding, (dilation,) * len(kernel))
    reach = (kernel[0] - 1) * dilation
    causal = padding == "causal"
    padded = ops.pad(a, [[0, 0], [reach, 0], [0, 0]]) if causal else a

    def forward(w: Any) -> Any:
        return ops.conv(padded, w, strides, "valid" if causal else padding, "channels_last", dilation)

    return Convolution(a, window, groups), forward, (*kernel, channels[0] // groups, channels[1])


def depthwise(sizes, kernel, strides=1, padding="same", dilation=1, multiplier=1):
    a = floats(BATCH, *sizes, 3)
    shape = (*kernel, 3, multiplier)
    window = Window(kernel, (strides,) * len(kernel), padding, (dilation,) * len(kernel))

    def forward(w: Any) -> Any:
        return ops.depthwise_conv(a, w, strides, padding, "channels_last", dilation)

    return DepthwiseConvolution(a, window, shape), forward, shape


def convolution_transpose(sizes, kernel, strides, padding):
    a = floats(BATCH, *sizes, 2)
    window = Window(kernel, (strides,) * len(kernel), padding, (1,) * len(kernel))
    return TransposedConvolution(a, window), lambda w: ops.conv_transpose(a, w, strides, padding), (*kernel, 3, 2)


def without_first_axis():
    contraction, forward, shape = product(4, 2)
    inner = Einsum(ops.expand_dims(contraction.a, 2), "btec,ecp->btp")
    return WithoutFirstAxis(inner), forward, shape


def row_of():
    contraction, forward, shape = product(4, 2)
    return RowOf(contraction, 1, 3), lambda w: forward(w[1]), (3, *shape)


def by_gate():
    gates = [product(4, 2), product(4, 2)]
    shape = (2, 6)

    def forward(w: Any) -> Any:
        return ops.concatenate([gates[0][1](w[:, :3]), gates[1][1](w[:, 3:])], axis=-1)

    return ByGate((gates[0][0], gates[1][0])), forward, shape


def folded(contraction: Any, forward: Any, shape: Any):
    """Rows 2 i and 2 i + 1 are example i's."""
    both = dataclasses.replace(contraction, a=ops.concatenate([contraction.a, contraction.a[::-1]], axis=0))

    def of_both(w: Any) -> Any:
        y = ops.convert_to_tensor(forward(w))
        return ops.concatenate([y, y[::-1]], axis=0)

    return both, of_both, shape


def rows_as_positions():
    contraction, forward, shape = folded(*convolution((5,), (3,), strides=2))
    return Folded(contraction, BATCH, 2), forward, shape


def rows_one_by_one():
    contraction, forward, shape = folded(*product(2))
    return Folded(WithoutRows(contraction), BATCH, 2), forward, shape


def repeated():
    return PerExample(), lambda w: ops.broadcast_to(w, [BATCH, 2, 3]), (2, 3)


CASES = {
    "product, one position": lambda: product(4),
    "product, few positions, wide": lambda: product(2, 12, outputs=10),
    "product, many positions": lambda: product(9, 3),
    "product, two axes of positions": lambda: product(2, 3, 2),
    "transposed product": lambda: transposed(4, 3),
    "einsum": lambda: einsum("btc,cde->btde", (4, 3), (3, 2, 2)),
    "einsum, several matrices": lambda: einsum("btec,ecd->btde", (4, 2, 3), (2, 3, 2)),
    "einsum, ellipsis": lambda: einsum("...x,xy->...y", (4, 3), (3, 2)),
    "einsum, summed position": lambda: einsum("btc,cd->bd", (4, 3), (3, 2)),
    "lookup": lambda: lookup(9),
    "lookup, one position": lambda: lookup(1),
    "lookup, two axes": lambda: lookup(2, 4),
    "shared lookup": shared_lookup,
    "bias": bias,
    "conv1d, causal, dilated": lambda: convolution((6,), (3,), padding="causal", dilation=2),
    "conv2d, same, strides": lambda: convolution((5, 6), (3, 2), strides=2),
    "conv2d, valid": lambda: convolution((4, 4), (2, 3), padding="valid"),
    "conv2d, dilated": lambda: convolution((5, 4), (2, 2), dilation=2),
    "conv2d, pointwise, strides": lambda: convolution((5, 4), (1, 1), strides=2),
    "conv2d, groups": lambda: convolution((4, 4), (2, 2), channels=(4, 2), groups=2),
    "conv2d, small map": lambda: convolution((2, 2), (3, 3), channels=(4, 4)),
    "conv3d": lambda: convolution((3, 2, 3), (2, 2, 1)),
    "depthwise1d": lambda: depthwise((6,), (3,)),
    "depthwise2d, strides, multiplier": lambda: depthwise((5, 5), (3, 2), strides=2, padding="valid", multiplier=2),
    "depthwise2d, dilated": lambda: depthwise((5, 5), (2, 2), dilation=2),
    "conv1d transpose, same": lambda: convolution_transpose((4,), (3,), 2, "same"),
    "conv2d transpose, valid": lambda: convolution_transpose((3, 2), (3, 2), 2, "valid"),
    "without first axis": without_first_axis,
    "row": row_of,
    "gates": by_gate,
    "rows as positions": rows_as_positions,
    "rows one by one": rows_one_by_one,
    "repeated": repeated,
}


def by_definition(forward: Any, d: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`G_i[k] = <d_i, y_i(e_k)>`, float64, shape [B, *shape]."""
    columns = []
    for k in range(math.prod(shape)):
        basis = np.zeros(math.prod(shape), "float32")
        basis[k] = 1.0
        y = np.asarray(ops.convert_to_numpy(forward(ops.convert_to_tensor(basis.reshape(shape)))), "float64")
        columns.append((d * y).reshape(BATCH, -1).sum(1))
    return np.stack(columns, axis=1).reshape(BATCH, *shape)


def check(contraction: Any, d: Any, expected: np.ndarray) -> None:
    """The contributions, the norms, the gradient, parts of the batch, and rows as positions."""
    every, some = slice(None), slice(1, 3)
    squares = (expected**2).reshape(BATCH, -1).sum(1)

    def close(found: Any, value: np.ndarray) -> None:
        found = ops.convert_to_numpy(found)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, value, rtol=RTOL, atol=ATOL * np.abs(value).max())

    close(contraction.contributions(d, every), expected)
    close(contraction.contributions(d, some), expected[some])
    close(contraction.squared_norms(d, every), squares)
    close(contraction.squared_norms(d, some), squares[some])
    together = contraction.norms_and_gradient(d)
    if together is not None:
        close(together[0], squares)
        close(together[1], expected.sum(0))
    of_two_rows = over_rows(contraction, BATCH // 2, 2)
    if of_two_rows is not None:
        d = ops.reshape(d, (BATCH // 2, 2, *d.shape[1:]))
        close(of_two_rows.contributions(d, every), expected[::2] + expected[1::2])


# Compiling takes long on JAX: one of each kind, of the others the code is the same.
QUICK_ON_JAX = (
    *("product, few positions, wide", "einsum, several matrices", "shared lookup", "conv2d, same, strides"),
    *("depthwise2d, strides, multiplier", "conv2d transpose, valid", "gates", "rows one by one"),
)


@pytest.mark.parametrize("case", long_unless(CASES, QUICK_ON_JAX, condition=ON_JAX))
def test_contractions(case):
    contraction, forward, shape = CASES[case]()
    y = ops.convert_to_numpy(forward(ops.zeros(shape, "float32")))
    d = RNG.normal(size=y.shape).astype("float32")
    check(contraction, ops.convert_to_tensor(d), by_definition(forward, d.astype("float64"), shape))


def test_uses_of_several_kinds_in_one_chunk_and_in_several(monkeypatch):
    parts, expected = [], 0.0
    for contraction, forward, shape in (convolution((4,), (2,)), convolution((6,), (2,))):
        d = RNG.normal(size=ops.convert_to_numpy(forward(ops.zeros(shape, "float32"))).shape).astype("float32")
        parts.append((contraction, ops.convert_to_tensor(d)))
        expected = expected + by_definition(forward, d.astype("float64"), shape)
    together = Added(tuple(parts), shape)
    check(together, parts[0][1], expected)
    monkeypatch.setattr(uses, "chunk_of", lambda bytes_per_example: 1)
    check(together, parts[0][1], expected)


def test_the_inner_product_of_a_lookup_and_its_transposed_product():
    at, a = ids(BATCH, 4), floats(BATCH, 5, 2)
    rows, head = Lookup(at, 7), TransposedMatMul(a)
    d, d_head = floats(BATCH, 4, 2), floats(BATCH, 5, 7)
    every = slice(None)
    expected = ops.sum(rows.contributions(d, every) * head.contributions(d_head, every), axis=(1, 2))
    found = rows.inner_product(d, head, d_head, every)
    np.testing.assert_allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(expected), rtol=RTOL, atol=ATOL)
