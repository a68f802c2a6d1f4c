"""TimeDistributed: one layer applied to every time step, so `G_i` is the sum over the steps of the inner layer's.

With a known number of steps Keras runs the inner layer once for each: that many uses of its variables, which are added
up. With an unknown number it maps the layer over the steps, inside which nothing can be recorded; then the steps are
folded into the batch axis instead.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.norms.recorder import Contraction, Recorder, sum_squares_per_example
from tf_largebatch.norms.registry import KERAS
from tf_largebatch.norms.shapes import Size, static_or_dynamic_shape, static_or_dynamic_size


@dataclasses.dataclass(frozen=True)
class Folded:
    """A contraction over rows: row `r batch_size + i` of `d` [rows batch_size, ...] is one of example i's."""

    inner: Contraction
    rows: Size
    batch_size: Size

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """`G_i = sum_r G_{i,r}` in float32, one row of every example at a time, so that no [b, rows, *w.shape] is."""
        start = 0 if examples.start is None else examples.start
        stop = self.batch_size if examples.stop is None else examples.stop

        def of_row(r: Any) -> tf.Tensor:
            at = slice(r * self.batch_size + start, r * self.batch_size + stop)
            return tf.cast(self.inner.contributions(d, at), tf.float32)

        first = of_row(0)
        _, total = tf.while_loop(
            lambda r, _: r < self.rows,
            lambda r, total: (r + 1, total + of_row(r)),
            (tf.constant(1), first),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, *first.shape[1:]])),
        )
        return total

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Directly: the rows' contributions have to be added first."""
        return sum_squares_per_example(self.contributions(d, examples))

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The contributions add up to the gradient."""
        contributions = self.contributions(d, slice(None))
        return sum_squares_per_example(contributions), tf.reduce_sum(contributions, axis=0)


@KERAS.register(keras.layers.TimeDistributed, wraps=True)
def time_distributed(
    layer: Any, recorder: Recorder, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """`y[:, t] = layer(x[:, t])`."""
    if inputs.shape[1] is not None:
        return type(layer).call(layer, inputs, training=training, mask=mask)
    inner = layer.layer
    _refuse_coupled_steps(layer)
    batch, steps = recorder.batch_size, static_or_dynamic_size(inputs, 1)
    kwargs: dict[str, Any] = {}
    if inner._call_has_mask_arg and mask is not None:
        kwargs["mask"] = _steps_as_batches(mask)
    if inner._call_has_training_arg:
        kwargs["training"] = training
    with recorder.folded(steps, lambda contraction: Folded(contraction, steps, batch)):
        y = inner.call(_steps_as_batches(inputs), **kwargs)
    y = tf.reshape(y, [steps, batch, *static_or_dynamic_shape(y)[1:]])
    return tf.transpose(y, [1, 0, *range(2, y.shape.rank)])


def _steps_as_batches(t: tf.Tensor) -> tf.Tensor:
    """[B, T, ...] as [T B, ...]."""
    t = tf.transpose(t, [1, 0, *range(2, t.shape.rank)])
    sizes = static_or_dynamic_shape(t)
    return tf.reshape(t, [sizes[0] * sizes[1], *sizes[2:]])


def _refuse_coupled_steps(layer: Any) -> None:
    """Raises if a layer inside may compute something else from all steps together than from each alone."""
    coupling = (keras.layers.BatchNormalization, keras.layers.Lambda)
    for sub in layer.layer._flatten_layers():
        if isinstance(sub, coupling) or not type(sub).__module__.startswith("keras."):
            raise ValueError(
                f"Per-example gradient norms are not available: layer {layer.path!r} runs {sub.name!r} "
                f"({type(sub).__name__}) over a number of time steps unknown when the step is traced, and the steps "
                "may not be independent in it. Give the time axis a static size or train with gradient_norms='replica'."
            )
