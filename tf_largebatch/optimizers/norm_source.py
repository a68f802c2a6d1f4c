"""What makes an optimizer CLARS in both Keras worlds: it divides by norms handed over, or by the replica's own."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from keras import ops

from tf_largebatch import check
from tf_largebatch.core import rates
from tf_largebatch.core.gradient_norms import GradientNorms
from tf_largebatch.core.paths import variable_labels
from tf_largebatch.optimizers import update_kernels
from tf_largebatch.optimizers.arguments import hyperparameter, may_differ, optional_number
from tf_largebatch.optimizers.replica_local import ReplicaLocal
from tf_largebatch.optimizers.update import ABSENT

Norms: TypeAlias = GradientNorms | Mapping[str, Any] | Sequence[Any]

_NORM_SOURCES = ("auto", "per_example", "replica")


@dataclasses.dataclass(frozen=True)
class _HandedOver:
    """Norms, and the variables they belong to: None for those of the optimizer, in its order."""

    norms: Norms
    variables: tuple[Any, ...] | None


class NormSource:
    """Mixed into CLARS beside `LayerwiseUpdate`.

    The norms travel as one vector [K], in the order of the optimizer's variables, among the gradients: through their
    accumulation, their all-reduce and, as the last pair, into the update.
    """

    # What a caller without norms can do, and when CLARS is LARS without them; each world has its own words.
    _remedy: str
    _alone: str

    # What the optimizer that this is mixed into has.
    name: Any
    _adapted: Any
    _trainable_variables: Any
    _index_if_known: Any

    def _set_norm_source(self, gradient_norms: str, norm_exponent: float, max_agreement: float | None) -> None:
        self.norm_exponent = hyperparameter(
            "norm_exponent", norm_exponent, lambda v: 0 <= v <= 1, "a number from 0 to 1", "1 is the paper's CLARS"
        )
        self.max_agreement = optional_number("max_agreement", max_agreement)
        sources = ", ".join(map(repr, _NORM_SOURCES))
        check.require(gradient_norms in _NORM_SOURCES, "gradient_norms", gradient_norms, f"one of {sources}")
        self._norm_source = str(gradient_norms)
        self._handed_over = ReplicaLocal()
        self._has_warned = False

    @property
    def reads_per_example_norms(self) -> bool:
        """Whether it is of any use to measure per-example norms for this optimizer."""
        return self._norm_source != "replica" and may_differ(self.norm_exponent, 0)

    def measured_denominator(self, norm: Any, gradient: Any) -> Any:
        """Returns the denominator of the rate of one tensor.

            max(||grad||^(1 - q) * s^q, ||grad|| / max_agreement)        q = norm_exponent

        Args:
            norm: `s`, scalar.
            gradient: `grad`, clipped and summed, without weight decay.

        Returns:
            A scalar of the norm's dtype. Without `max_agreement` there is no second term.
        """
        mixes = may_differ(self.norm_exponent, 1)
        if not mixes and self.max_agreement is None:
            return norm
        of_batch = update_kernels.l2_norm(gradient)
        found = norm
        if mixes:
            found = of_batch
            if may_differ(self.norm_exponent, 0):
                found = of_batch ** (1.0 - self.norm_exponent) * norm**self.norm_exponent
        if self.max_agreement is None:
            return found
        least = of_batch / self.max_agreement
        return ops.where(found < least, least, found)  # keeps a NaN, which a maximum may drop

    @contextlib.contextmanager
    def measured_gradient_norms(self, norms: Norms, variables: Sequence[Any] | None = None) -> Iterator[None]:
        """Hands measured norms to the optimizer for the step inside the `with` block, also to a wrapper's step.

        They follow the same rules as gradients. Each replica hands over the sum over *its* examples of the norm of the
        example's contribution to the gradient of its loss, which is its share of the mean loss over the global batch,
        so that the replicas' norms add up to `s`. Norms and gradients carry the same `loss_scale_factor` of this
        optimizer; a loss scale of `LossScaleOptimizer` must have been divided out. Of accumulated micro-batches the
        mean is taken. The norms are summed over replicas in the gradients' own all-reduce. Call it in replica context,
        where the gradients are. With `gradient_norms="replica"` a training step that splits a batch into micro-batches
        hands over the mean of *their* gradients' norms.

        Args:
            norms: `GradientNorms`, or a list with one norm or None for each variable, or `{variable path: norm}` with
                the paths of `layerwise_rates`. Norms are scalar floating tensors. Every tensor with layer adaptation
                that has a gradient needs one; norms of other tensors are only reported.
            variables: The variables that `GradientNorms` or a list belongs to. By default those of the step inside,
                as they are given to `apply` or `apply_gradients`; necessary where a wrapper drops variables without
                gradient before, as tf_keras's `LossScaleOptimizer` does.

        Yields:
            Nothing.
        """
        with self._handed_over.holding(_HandedOver(norms, None if variables is None else tuple(variables))):
            yield

    @contextlib.contextmanager
    def _in_the_order_of(self, variables: Sequence[Any]) -> Iterator[None]:
        """Inside the `with` block norms that were handed over without variables are those of these variables."""
        handed = self._handed_over.get()
        if handed is not None and handed.variables is None and not isinstance(handed.norms, Mapping):
            handed = _HandedOver(handed.norms, tuple(variables))
        with self._handed_over.holding(handed):
            yield

    def _local_norms(self, gradients: Mapping[int, Any], scale: float = 1.0) -> GradientNorms:
        """Returns this replica's norms, in the order of the optimizer's variables.

        Args:
            gradients: `{number of the variable: gradient}`.
            scale: What handed-over norms are to be divided by.

        Raises:
            ValueError: If norms were expected and none were handed over, or those handed over are malformed or lack an
                adapted tensor that has a gradient.
        """
        handed = self._handed_over.get()
        adapted = [index for index in gradients if self._adapted[index]]
        if handed is None:
            if adapted:
                self._check_that_none_were_expected()
            own = [rates.l2_norm(gradients[i]) if i in adapted else None for i in range(len(self._adapted))]
            return GradientNorms.pack(own)
        norms = self._in_own_order(handed)
        missing = [index for index in adapted if not norms.known[index]]
        if missing:
            labels = variable_labels(self._trainable_variables)
            raise ValueError(
                f"The measured gradient norms lack {[labels[index] for index in missing]}, to which layer-wise rates "
                "apply: measure them, or exclude them with exclude_from_layer_adaptation."
            )
        known = tuple(known and index in gradients for index, known in enumerate(norms.known))
        return GradientNorms(norms.values if scale == 1 else norms.values / scale, known)

    def _in_own_order(self, handed: _HandedOver) -> GradientNorms:
        """Returns what was handed over as the norms of the optimizer's variables."""
        given = self._trainable_variables if handed.variables is None else handed.variables
        norms = packed(handed.norms, given)
        position_of = {self._index_if_known(variable): position for position, variable in enumerate(given)}
        positions = [position_of.get(index) for index in range(len(self._adapted))]
        if positions == list(range(len(given))):
            return norms
        # Layers that were frozen after the optimizer was built have no norms.
        known = tuple(position is not None and norms.known[position] for position in positions)
        return GradientNorms(ops.take(norms.values, [position or 0 for position in positions]), known)

    def _own_norms(self) -> GradientNorms:
        """Returns what `_local_norms` returned, handed over for the rest of the step."""
        return self._handed_over.get().norms

    def _check_that_none_were_expected(self) -> None:
        if not may_differ(self.norm_exponent, 0):
            return
        if self._norm_source == "per_example":
            raise ValueError(f"{self.name} received no per-example gradient norms: {self._remedy}")
        if self._norm_source == "auto" and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self.name} received no per-example gradient norms and uses those of each replica's gradient "
                f"instead ({self._alone} CLARS is then LARS): {self._remedy}",
                stacklevel=3,
            )


def marked(norms: GradientNorms) -> Any:
    """Returns the norms' values, [K] float32, with `ABSENT` where a norm is not known."""
    return ops.where(ops.convert_to_tensor(norms.known), norms.values, ABSENT)


def packed(norms: Norms, variables: Sequence[Any]) -> GradientNorms:
    """Returns norms in any form as one vector.

    Args:
        norms: As `measured_gradient_norms` takes them.
        variables: The variables they belong to.

    Raises:
        ValueError: If there is not one norm (or None) for each variable, or one is not a scalar.
    """
    labels = variable_labels(variables)
    if isinstance(norms, Mapping):
        norms = [norms.get(label) for label in labels]
    count = len(norms.known if isinstance(norms, GradientNorms) else norms)
    if count != len(labels):
        raise ValueError(
            f"Received {count} measured gradient norms for {len(labels)} variables: hand over one (or None) for each, "
            "and the variables themselves, measured_gradient_norms(norms, variables), where a wrapper drops those "
            "without gradient, as LossScaleOptimizer of tf_keras does."
        )
    if isinstance(norms, GradientNorms):
        return norms
    norms = [None if norm is None else ops.convert_to_tensor(norm) for norm in norms]
    for label, norm in zip(labels, norms, strict=True):
        shape = () if norm is None else tuple(norm.shape)
        if shape:
            raise ValueError(f"A measured gradient norm must be a scalar; that of {label!r} has shape {shape}.")
    return GradientNorms.pack(norms)
