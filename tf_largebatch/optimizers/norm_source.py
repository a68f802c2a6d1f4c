"""Which gradient norms CLARS adapts to, in both Keras worlds: those handed over, or those of the replica's gradient."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tf_largebatch.core import rates
from tf_largebatch.core.paths import variable_path
from tf_largebatch.optimizers.replica_local import Norms, ReplicaLocal, measured_norms

_NORM_SOURCES = ("auto", "per_example", "replica")


def check_norm_source(gradient_norms: str) -> None:
    """Raises ValueError unless `gradient_norms` is one of the sources."""
    if gradient_norms not in _NORM_SOURCES:
        raise ValueError(
            f"`gradient_norms` must be one of {_NORM_SOURCES}; received gradient_norms={gradient_norms!r}."
        )


class NormSource:
    """Mixed into CLARS beside `LayerwiseUpdate`."""

    # What a caller without norms can do, and when CLARS is LARS without them; each world has its own words.
    _remedy: str
    _alone: str

    # What the host has.
    name: Any
    _adapted: Any
    _trainable_variables: Any

    def _set_norm_source(self, gradient_norms: str) -> None:
        self._norm_source = gradient_norms
        self._handed_norms = ReplicaLocal()
        self._has_warned = False

    @property
    def reads_per_example_norms(self) -> bool:
        """Whether measuring per-example norms for this optimizer is of any use."""
        return self._norm_source != "replica"

    def _packed_norms_of(
        self, gradients: Mapping[int, Any], handed: Norms | None, scale: float = 1.0
    ) -> tuple[Any, list[bool]]:
        """This replica's norms, [K] float32 (0 if unknown), and which are known.

        Args:
            gradients: `{number of the variable: gradient}`.
            handed: norms as `measured_norms` takes them, None if there are none.
            scale: what they are to be divided by.
        """
        adapted = [index for index in gradients if self._adapted[index]]
        if handed is not None:
            paths = [variable_path(variable) for variable in self._trainable_variables]
            measured = measured_norms(handed, paths, adapted)
            norms = {index: norm / scale for index, norm in measured.items() if index in gradients}
        else:
            if adapted:
                self._check_that_none_were_expected()
            norms = {index: tf.cast(rates.l2_norm(gradients[index]), tf.float32) for index in adapted}
        numbers = range(len(self._adapted))
        zero = tf.zeros((), tf.float32)
        return tf.stack([norms.get(index, zero) for index in numbers]), [index in norms for index in numbers]

    def _check_that_none_were_expected(self) -> None:
        if self._norm_source == "per_example":
            raise ValueError(f"{self.name} received no per-example gradient norms: {self._remedy}")
        if self._norm_source == "auto" and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self.name} received no per-example gradient norms and uses those of each replica's gradient "
                f"instead ({self._alone} CLARS is then LARS): {self._remedy}",
                stacklevel=3,
            )
