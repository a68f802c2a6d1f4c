"""What the Pallas kernels for GPUs share: places in memory, masks, and batches that are spread over devices.

They are written for Pallas's Triton backend, which JAX 0.11 warns will be removed; without it the choosers take other
forms.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

try:
    from jax.experimental.pallas import triton
except ImportError:
    triton = None  # type: ignore[assignment]

LARGEST_INDEX = 2**31 - 1  # of an array that a kernel reads


def where_examples_lie(kernel: Callable[..., Any], with_gradient: bool) -> Callable[..., Any]:
    """Returns the kernel for a batch that may be spread over devices: each computes its examples.

    XLA cannot cut a kernel by itself; it would gather the whole batch on every device.

    Args:
        kernel: Maps `a` [B, ...] and `d` [B, ...], of two axes each, and a hashable description to squared norms [B]
            and, with the gradient, a sum over the examples of two axes, as a list.
        with_gradient: Whether it returns both.
    """
    return kernel if jax.device_count() == 1 else _partitioned(kernel, with_gradient)


@functools.cache
def _partitioned(kernel: Callable[..., Any], with_gradient: bool) -> Callable[..., Any]:
    def shardings(layer: Any, mesh: Any, arguments: Any, results: Any) -> tuple[Any, Any, Any]:
        """Returns the axes of the mesh along which the examples lie, and the shardings of arguments and results."""
        del layer, results
        specs = [argument.sharding.spec for argument in arguments]
        examples = next((spec[0] for spec in specs if len(spec) and spec[0] is not None), None)
        by_example = NamedSharding(mesh, PartitionSpec(examples, None))
        squares, gradient = NamedSharding(mesh, PartitionSpec(examples)), NamedSharding(mesh, PartitionSpec(None, None))
        return examples, (by_example, by_example), [squares, gradient] if with_gradient else [squares]

    def partition(layer: Any, mesh: Any, arguments: Any, results: Any) -> tuple[Any, Any, Any, Any]:
        examples, of_arguments, of_results = shardings(layer, mesh, arguments, results)

        def on_each(a: jax.Array, d: jax.Array) -> list[jax.Array]:
            squares, *gradient = kernel(a, d, layer)
            return [squares, *(g if examples is None else lax.psum(g, examples) for g in gradient)]

        return mesh, on_each, of_results, of_arguments

    partitioned = custom_partitioning(kernel, static_argnums=(2,))
    partitioned.def_partition(
        partition=partition,
        infer_sharding_from_operands=lambda *arguments: shardings(*arguments)[2],
        sharding_rule="b i, b j -> b, r p" if with_gradient else "b i, b j -> b",
    )
    return partitioned


def place(number: Any, sizes: Sequence[int], steps: Sequence[int]) -> Any:
    """Returns where the `number`-th of all positions of a grid lies, whose axes advance by `steps`."""
    place = jnp.zeros_like(number)
    for axis in reversed(range(len(sizes))):
        if sizes[axis] == 1:
            continue
        size = jnp.full_like(number, sizes[axis])
        place = place + (lax.rem(number, size) if axis else number) * steps[axis]
        number = lax.div(number, size)
    return place


def load(ref: Any, index: Any, at: Any, of_rows: Any, of_columns: Any) -> Any:
    """Loads a tile of one example; zeros where the masks of its rows or columns, if any, are false."""
    mask = mask_of(at.shape, of_rows, of_columns)
    return triton.load(ref.at[index, at], mask=mask, other=None if mask is None else 0.0)


def mask_of(shape: tuple[int, ...], of_rows: Any, of_columns: Any) -> Any:
    """Returns the mask of a tile from those of its rows and its columns, of which None is true everywhere."""
    masks = [] if of_rows is None else [of_rows[:, None]]
    masks += [] if of_columns is None else [of_columns[None, :]]
    return jnp.broadcast_to(functools.reduce(operator.and_, masks), shape) if masks else None
