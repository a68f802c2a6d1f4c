"""What a layer rule speaks to, on every backend: the record of where each trainable variable was used.

A rule computes its layer's output from private values of the layer's variables (`Recorder.value`) and records every
use of a variable together with the tensor that depends on it (`Recorder.record`). One backward pass then gives the
gradient of the loss at every recorded tensor, and from it each example's contribution to each variable's gradient.

`Recorder` keeps the record; `backend/tensorflow/recorder.py` and `backend/jax/recorder.py` are it on each backend.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from tf_largebatch.core.paths import variable_path
from tf_largebatch.norms.shapes import Size

Tensor: TypeAlias = Any  # of the backend in use
Variable: TypeAlias = Any  # a keras.Variable, a tf_keras variable or a tf.Variable


@dataclasses.dataclass
class Structure:
    """What the structure check finds of a model.

    Attributes:
        has_batch_axis: The answers of `Recorder.has_batch_axis`, by layer, number of its call and of the question.
        broadcasts: For each use without a batch axis, in the order of a call of the model, what the operations that
            follow make of it.
    """

    has_batch_axis: dict[tuple[int, int, int], bool] = dataclasses.field(default_factory=dict)
    broadcasts: dict[int, list[Any]] = dataclasses.field(default_factory=dict)


class Contraction(Protocol):
    """How a recorded tensor `y` depends on a variable `w`: linearly, example by example.

    With `d = dLoss/dy`, shape [B, ...], example i's contribution to the gradient of `w` is `G_i(d)`, shape
    `w.shape`, and `sum_i G_i` is that use's whole share of the gradient.
    """

    def contributions(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `G_i` for the examples of the slice, shape [b, *w.shape].

        This is the direct form, right for any number of uses.
        """

    def squared_norms(self, d: Tensor, examples: slice) -> Tensor:
        """Returns `||G_i||^2` in float32, shape [b], by the cheapest form for these shapes."""

    def norms_and_gradient(self, d: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns `||G_i||^2`, shape [B], and `sum_i G_i` where the two are cheaper together; else None."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One use of one variable: the recorded tensor and how it depends on the variable.

    `private_value` is what the layer computed with; its gradient is the ordinary gradient of this use. A use without a
    contraction is the variable repeated for each example (`Recorder.per_example`), private value and output in one:
    its gradient is `G_i` itself. `number` counts the uses of a forward pass, `layer_call` the calls of layers. The
    output of a use with `broadcast` has no batch axis; these are the decisions by which it is followed to the batch.
    """

    variable: Variable
    output: Tensor
    private_value: Tensor
    contraction: Contraction | None
    number: int
    layer_call: int
    broadcast: list[Any] | None = None


class Recorder(abc.ABC):
    """Records the uses of variables during one forward pass of a batch.

    A rule speaks to it in one of three ways. `record(variable, y, contraction)` says that `y` [B, ...] was computed
    with `value(variable)`. `per_example(variable)` gives the variable repeated for each example, to compute with in its
    place. `record_broadcast(variable, y, contraction)` says that `y` has no batch axis ([T, D] or [1, T, D]) and meets
    the batch later, by broadcasting: a table of positions that is looked up once for all examples.
    `has_batch_axis(inputs)` tells which a lookup is, by the structure of the model and not by size.

    Args:
        batch_size: Number of examples B, an int where it is known, else a scalar int32 tensor.
        checks_structure: Whether this is the forward pass of the structure check, whose batch size is one that no
            other axis has: there sizes tell what has a batch axis.
    """

    def __init__(self, batch_size: Size, checks_structure: bool = False) -> None:
        self.batch_size = batch_size
        self.uses: list[Use] = []
        self.checks_structure = checks_structure
        self.structure = Structure()  # what the check finds, or has found
        self.rows_are_unknown = False
        self._layer_calls = 0
        self._calls_of: dict[int, int] = {}
        self._questions = 0
        self._broadcasts = 0
        self._layer: Any = None
        self._rows_per_example: Size | None = None
        self._fold: Callable[[Contraction], Contraction] = lambda contraction: contraction

    def begin_model_call(self, structure: Structure) -> None:
        """Begins a call of the model, of which the structure check has found this."""
        self.structure = structure
        self._calls_of.clear()
        self._broadcasts = 0

    @contextlib.contextmanager
    def in_layer(self, layer: Any) -> Iterator[None]:
        """Within it the layer's rule runs."""
        saved = self._layer, self._questions
        self._layer, self._questions = layer, 0
        self._layer_calls += 1
        self._calls_of[id(layer)] = self._calls_of.get(id(layer), 0) + 1
        try:
            yield
        finally:
            self._layer, self._questions = saved

    @abc.abstractmethod
    def value(self, variable: Variable, dtype: Any = None) -> Tensor:
        """Returns a private value: a copy of the variable's value, in the layer's compute dtype or in `dtype`.

        The read is hidden from differentiation. So every read that it does see is a use of the variable which no
        rule accounts for, and such a model can be refused instead of measured wrongly.

        Raises:
            ValueError: If it is no variable, as where a layer computes its kernel from others.
        """

    @abc.abstractmethod
    def unseen(self) -> contextlib.AbstractContextManager[None]:
        """Within it reads of variables are hidden as those of `value` are; may be nested."""

    @abc.abstractmethod
    def probe(self, shape: Sequence[Size], dtype: Any) -> Tensor:
        """Returns zeros to record and then to add to a tensor inside a loop: the gradient there is theirs."""

    @abc.abstractmethod
    def record(self, variable: Variable, output: Tensor, contraction: Contraction) -> Tensor:
        """Notes that `output`, shape [B, ...], depends on the last `value` of the variable as the contraction says.

        Returns the tensor to go on with: the same, at which the gradient is seen when it comes back.
        """

    @abc.abstractmethod
    def record_broadcast(self, variable: Variable, output: Tensor, contraction: Contraction) -> Tensor:
        """Notes that `output`, which has no batch axis, depends on the last `value` of the variable.

        Args:
            variable: The variable.
            output: Shape [T, ...] or [1, T, ...], known when traced; the same for every example.
            contraction: As for `record`; its `d` is each example's gradient at the output, [B, *output.shape], float32.

        Returns:
            The output, to go on with.

        Raises:
            ValueError: Where what becomes of the output cannot be followed.
        """

    @abc.abstractmethod
    def per_example(self, variable: Variable, dtype: Any = None) -> Tensor:
        """Returns the variable repeated for each example, shape [B, *variable.shape].

        A layer that computes with it in place of the variable gets exact per-example gradients with no more work:
        the gradient of the repeated variable is `G_i`. Meant for small tensors such as scales and biases. With many
        positions and half precision, multiply in float32 (pass `dtype`): the backward pass sums over the positions in
        the dtype of the product.
        """

    @abc.abstractmethod
    def guard(self, outputs: Any, layer: str) -> Any:
        """Returns a recorded layer's outputs so that gradients which the model takes itself are found out."""

    @contextlib.contextmanager
    def folded(self, rows: Size, fold: Callable[[Contraction, Size, Size], Contraction]) -> Iterator[None]:
        """Within it every layer's batch axis holds `rows` rows for each example, one example after the other.

        Args:
            rows: How many rows an example has. Within another `folded` it is how many rows one of its rows has.
            fold: Makes of a contraction over single rows one over examples, given the number of examples and of rows
                for each. The new contraction receives `d` with all the rows on axis 0.
        """
        saved = self.batch_size, self._rows_per_example, self._fold
        outer = self._rows_per_example
        all_rows = rows if outer is None else outer * rows
        examples = self.batch_size if outer is None else self.batch_size // outer
        self._rows_per_example, self.batch_size = all_rows, self.batch_size * rows
        self._fold = lambda contraction: fold(contraction, examples, all_rows)
        try:
            yield
        finally:
            self.batch_size, self._rows_per_example, self._fold = saved

    def has_batch_axis(self, t: Tensor) -> bool:
        """Returns whether axis 0 of an argument of the layer that runs is the batch, whatever its size is by chance.

        Ask for the same arguments in the same order in every call of the rule.
        """
        self._questions += 1
        key = id(self._layer), self._calls_of.get(id(self._layer), 0), self._questions
        known = self.structure.has_batch_axis
        if self.checks_structure:
            rows = t.shape[0] if len(t.shape) else -1
            known[key] = rows is None or rows == self.batch_size
        if key not in known:
            raise ValueError(
                f"Per-example gradient norms are not available: layer {self._path()!r} was not called when the model "
                "was checked with another batch size. Call the same layers in every forward pass or train with "
                "gradient_norms='replica'."
            )
        return known[key]

    def _add_use(
        self, variable: Variable, output: Tensor, private_value: Tensor, contraction: Contraction | None
    ) -> Use:
        self.uses.append(Use(variable, output, private_value, contraction, len(self.uses), self._layer_calls))
        return self.uses[-1]

    def _path(self) -> str:
        return "?" if self._layer is None else layer_path(self._layer)

    def _check_is_variable(self, variable: Any) -> None:
        if not hasattr(variable, "assign"):
            raise ValueError(
                f"Per-example gradient norms are not available: layer {self._path()!r} computes with a tensor where "
                f"its class has a variable (received {type(variable).__name__} of shape {variable.shape}). Register "
                "a rule for this layer or train with gradient_norms='replica'."
            )

    def _check_batch_axis(self, variable: Variable, output: Tensor) -> None:
        rows = output.shape[0] if len(output.shape) else -1
        if isinstance(rows, int) and isinstance(self.batch_size, int) and rows != self.batch_size:
            raise BatchAxisError(batch_axis_message(self._path(), variable_path(variable), rows, self.batch_size))
        if rows is None and isinstance(self.batch_size, int):
            self.rows_are_unknown = True


class BatchAxisError(ValueError):
    """A layer's first axis is not the batch."""


class NeedsGraph(ValueError):
    """What cannot be measured in eager execution, but in a graph."""


def layer_path(layer: Any) -> str:
    """Returns what messages call a layer: its path in Keras 3, its name in tf_keras."""
    return getattr(layer, "path", layer.name)


def batch_axis_message(layer: str, variable: str, rows: int, batch_size: int) -> str:
    """Returns the sentence for a layer whose first axis is not the batch."""
    found = f"{rows // batch_size} rows for each example" if rows % batch_size == 0 else f"{rows} rows for all examples"
    return (
        "Per-example gradient norms need the examples on axis 0 of every layer's output, one row for each example; "
        f"layer {layer!r} (variable {variable!r}) has {found}: keep the batch axis first and apart in the model, or "
        "train with gradient_norms='replica'."
    )


def broadcast_message(layers: Sequence[str]) -> str:
    """Returns the sentence for outputs without a batch axis that meet the batch in no sum or product."""
    return (
        f"Per-example gradient norms are not available: the outputs of {', '.join(sorted(set(layers)))} are the same "
        "for all examples, and the model does more with them than to broadcast them over the batch in a sum or "
        "product. Have the layer that does so measured by the slow rule for any layer "
        "(tf_largebatch.norms.use_generic(layer)) or train with gradient_norms='replica'."
    )


def inner_gradient_message(layers: Sequence[str]) -> str:
    """Returns the sentence for a loss that depends on a derivative of recorded layers."""
    return (
        "Per-example gradient norms are not available: the loss depends on a derivative that the model takes through "
        f"the layers {', '.join(layers)} in its own forward pass, and the second derivatives of their weights cannot "
        "be measured. Put stop_gradient around the derivative if it is not to be differentiated, have the layer "
        "(or model) that takes it measured by the slow rule for any layer (tf_largebatch.norms.use_generic(layer); in "
        "tf_keras, tf_largebatch.tf_keras.norms.TF_KERAS.mark_generic(layer)), or train with gradient_norms='replica'."
    )


def unrecorded_use_message(paths: Sequence[str]) -> str:
    """Returns the sentence for variables that are used where no rule sees it."""
    return (
        "Per-example gradient norms are not available: these variables are used elsewhere than in the layer that owns "
        f"them, where their use cannot be measured: {', '.join(paths)}. Use them through their layer or train with "
        "gradient_norms='replica'."
    )


def unexplained_message(paths: Sequence[str]) -> str:
    """Returns the sentence for private values that the loss depends on otherwise than through recorded tensors."""
    return (
        "Per-example gradient norms are not available: the loss depends on these variables, but not on what their "
        f"layers returned: {', '.join(paths)}. A layer that runs inside a vectorized map or a loop cannot be measured: "
        "call it on the whole batch or train with gradient_norms='replica'."
    )


def composite_message(layer: str, t: Any, why: str) -> str:
    """Returns the sentence for a layer that cannot be measured on a sparse or ragged tensor."""
    return (
        f"Per-example gradient norms are not available: layer {layer!r} received a {type(t).__name__} of shape "
        f"{t.shape}, which it cannot be measured on ({why}). Pass it a dense tensor, such as "
        "keras.ops.convert_to_tensor(x, sparse=False, ragged=False)."
    )


def refusal_in(error: BaseException | None) -> BaseException | None:
    """Returns the package's own sentence among an error and its causes, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, ValueError) and "Per-example gradient norms" in str(error):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
