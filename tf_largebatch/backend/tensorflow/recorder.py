"""The recorder on TensorFlow: private values and recorded tensors are watched by the step's gradient tape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_largebatch.backend.tensorflow.inner_gradients import InnerGradients
from tf_largebatch.norms import recorder as base
from tf_largebatch.norms.recorder import Contraction, NeedsGraph, Use, Variable, broadcast_message
from tf_largebatch.norms.shapes import Size


class Recorder(base.Recorder):
    """Records the uses of variables during one forward pass of a batch.

    Args:
        tape: The recording gradient tape of that forward pass.
        batch_size: Number of examples B, an int where it is known, else a scalar int32 tensor.
        checks_structure: Whether this is the forward pass of the structure check.
    """

    def __init__(self, tape: tf.GradientTape, batch_size: int | tf.Tensor, checks_structure: bool = False) -> None:
        super().__init__(batch_size, checks_structure)
        # Called in the backward pass with a use and its d where the gradient passes it; returns what goes on.
        self.on_gradient: Callable[[Use, tf.Tensor], tf.Tensor] = lambda use, d: d
        self.inner_gradients = InnerGradients(tape)
        self._graph = _graph()
        self._tape = tape
        self._private_values: dict[int, tf.Tensor] = {}
        self._hidden = False

    def value(self, variable: Variable, dtype: Any = None) -> tf.Tensor:
        """Returns a private value, watched by the tape, of a read that the tape does not see."""
        self._check_is_variable(variable)
        with self.unseen():
            value = tf.identity(_read(variable, dtype))
        self._tape.watch(value)
        self._private_values[id(variable)] = value
        return value

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Within it the tape records nothing; may be nested."""
        if self._hidden:
            yield
            return
        self._hidden = True
        try:
            with self._tape.stop_recording():
                yield
        finally:
            self._hidden = False

    def probe(self, shape: Sequence[Size], dtype: Any) -> tf.Tensor:
        """Returns zeros that the tape watches."""
        zeros = tf.zeros(shape, dtype)
        self._tape.watch(zeros)
        return zeros

    def record(self, variable: Variable, output: tf.Tensor, contraction: Contraction) -> tf.Tensor:
        """Notes the use and returns the output, at which `on_gradient` sees the gradient when it comes back."""
        self._check_graph()
        self._check_batch_axis(variable, output)
        use = self._add_use(variable, output, self._private_values[id(variable)], self._fold(contraction))

        @tf.custom_gradient
        def with_gradient_seen(y: tf.Tensor) -> Any:
            return tf.identity(y), lambda d: self.on_gradient(use, d)

        return with_gradient_seen(output)

    def record_broadcast(self, variable: Variable, output: tf.Tensor, contraction: Contraction) -> tf.Tensor:
        """Notes the use and returns the output; its consumers are followed in the graph."""
        self._check_graph()
        if self._graph is None:
            raise NeedsGraph(
                f"The output of layer {self._path()!r} is the same for all examples, and its per-example gradient "
                "norms can be measured in a compiled step only: compile the model with run_eagerly=False, or call the "
                "pass inside a tf.function."
            )
        if self._rows_per_example is not None or not output.shape.is_fully_defined():
            raise ValueError(broadcast_message([self._path()]))
        private_value = self._private_values[id(variable)]
        decisions = self.structure.broadcasts.setdefault(self._broadcasts, [])
        self._broadcasts += 1
        number = len(self.uses)
        self.uses.append(
            Use(variable, output, private_value, contraction, number, self._layer_calls, broadcast=decisions)
        )
        return output

    def per_example(self, variable: Variable, dtype: Any = None) -> tf.Tensor:
        """Returns the variable repeated for each example, private value and recorded tensor in one."""
        self._check_is_variable(variable)
        self._check_graph()
        shape = list(variable.shape)
        rows = self._rows_per_example
        examples = self.batch_size if rows is None else self.batch_size // rows
        with self.unseen():
            value = _read(variable, dtype)
            wide = tf.cast(value, tf.float32) if value.dtype.size < 4 else value
            repeated = tf.broadcast_to(wide, [examples, *shape])
        self._tape.watch(repeated)
        self._add_use(variable, repeated, repeated, None)
        if rows is not None:
            by_row = tf.broadcast_to(repeated[:, tf.newaxis], [examples, rows, *shape])
            repeated_rows = tf.reshape(by_row, [examples * rows, *shape])
            return tf.cast(repeated_rows, value.dtype)
        return tf.cast(repeated, value.dtype)

    def guard(self, outputs: Any, layer: str) -> Any:
        """Returns the outputs behind a guard of `InnerGradients`."""
        return self.inner_gradients.guard(outputs, layer)

    def _check_graph(self) -> None:
        if _graph() is not self._graph:
            raise ValueError(
                f"Per-example gradient norms are not available: layer {self._path()!r} runs inside a tf.function, "
                "tf.cond, tf.while_loop or rematerialisation of its own. Call it directly or train with "
                "gradient_norms='replica'."
            )


def _read(variable: Variable, dtype: Any) -> tf.Tensor:
    """Returns the variable's value, in the layer's compute dtype or in `dtype`."""
    value = tf.convert_to_tensor(variable)
    return value if dtype is None else tf.cast(value, dtype)


def _graph() -> Any:
    """Returns the graph under construction; None in eager execution."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
