"""The largest eigenvalues of the loss's Hessian: of all weights, and of each tensor alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from tf_largebatch.analysis.loss_surface import LossSurface
from tf_largebatch.check import require

# ARPACK needs more dimensions than eigenvalues; smaller matrices are written out.
_DENSE_SIZE = 20


def sharpness(surface: LossSurface, count: int = 1, tolerance: float = 1e-3, seed: int = 0) -> np.ndarray:
    """Returns the largest eigenvalues of the Hessian of the loss.

    By the Lanczos method (ARPACK, `scipy.sparse.linalg.eigsh`) from Hessian-vector products, each about two
    gradients' work.

    Args:
        surface: The loss.
        count: How many eigenvalues.
        tolerance: Relative error at which an eigenvalue counts as converged.
        seed: Of the vector to begin with.

    Returns:
        The eigenvalues, float64 [count], in falling order, in the unit of the loss by that of the weights squared.

    Raises:
        ValueError: If `count` is not between 1 and the number of weights.
    """
    shapes = [w.shape for w in surface.weights()]

    def product(vector: np.ndarray) -> np.ndarray:
        return _flat(surface.hessian_product(_shaped(vector, shapes)))

    return _largest(product, sum(int(np.prod(shape)) for shape in shapes), count, tolerance, seed)


def layer_sharpness(surface: LossSurface, tolerance: float = 1e-3, seed: int = 0) -> dict[str, float]:
    """Returns, for each tensor, the largest eigenvalue of the Hessian's block of that tensor.

    It is the smoothness constant of the loss in that tensor, here and now: gradient descent on the tensor alone is
    stable below the step 2 / eigenvalue.

    Args:
        surface: The loss.
        tolerance: As in `sharpness`.
        seed: As in `sharpness`.

    Returns:
        `{label: eigenvalue}`.
    """
    weights = surface.weights()
    zeros = [np.zeros_like(w) for w in weights]
    found = {}
    for index, label in enumerate(surface.labels):
        shape = weights[index].shape

        def product(vector: np.ndarray, index: int = index, shape: tuple[int, ...] = shape) -> np.ndarray:
            vectors = [*zeros]
            vectors[index] = vector.reshape(shape).astype(zeros[index].dtype)
            return surface.hessian_product(vectors)[index].ravel()

        found[label] = float(_largest(product, weights[index].size, 1, tolerance, seed)[0])
    return found


def _largest(
    product: Callable[[np.ndarray], np.ndarray], size: int, count: int, tolerance: float, seed: int
) -> np.ndarray:
    require(tolerance > 0, "tolerance", tolerance, "above 0")
    require(0 < count <= size, "count", count, f"between 1 and the number of weights, {size}")
    if size <= max(_DENSE_SIZE, count + 1):
        matrix = np.stack([product(column) for column in np.eye(size)], 1).astype(np.float64)
        return np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1][:count]
    operator = LinearOperator((size, size), matvec=lambda v: product(v).astype(np.float64), dtype=np.float64)
    begin = np.random.default_rng(seed).normal(size=size)
    values = eigsh(operator, k=count, which="LA", v0=begin, tol=tolerance, return_eigenvectors=False)
    return np.sort(values)[::-1]


def _flat(tensors: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(t) for t in tensors])


def _shaped(vector: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    parts = np.split(np.ravel(vector).astype(np.float32), ends)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
