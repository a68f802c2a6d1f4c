"""Contractions made of others: with an axis less, gate by gate, or given later."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tf_largebatch.norms.recorder import Contraction


@dataclasses.dataclass(frozen=True)
class WithoutFirstAxis:
    """A contraction whose variable has one more axis, of size 1, before those of the variable meant."""

    inner: Contraction

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """The inner contributions, without the axis."""
        return tf.squeeze(self.inner.contributions(d, examples), axis=1)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """The inner ones."""
        return self.inner.squared_norms(d, examples)

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
        """The inner ones, without the axis."""
        together = self.inner.norms_and_gradient(d)
        return None if together is None else (together[0], tf.squeeze(together[1], axis=0))


@dataclasses.dataclass
class Deferred:
    """A contraction whose operand is known only after the loop has run."""

    inner: Contraction = dataclasses.field(init=False)

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Those of the contraction that came to be."""
        return self.inner.contributions(d, examples)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """Those of the contraction that came to be."""
        return self.inner.squared_norms(d, examples)

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Those of the contraction that came to be."""
        return self.inner.norms_and_gradient(d)


@dataclasses.dataclass(frozen=True)
class ByGate:
    """`y = [y_1, y_2, ...]` on the last axis, each equally wide and linear in its own block of the variable."""

    gates: tuple[Contraction, ...]

    def contributions(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """The gates' contributions side by side."""
        return tf.concat([gate.contributions(d_g, examples) for gate, d_g in self._with_d(d)], axis=-1)

    def squared_norms(self, d: tf.Tensor, examples: slice) -> tf.Tensor:
        """The gates' squares added."""
        return tf.add_n([gate.squared_norms(d_g, examples) for gate, d_g in self._with_d(d)])

    def norms_and_gradient(self, d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
        """The gates' squares added and their gradients side by side."""
        together = [gate.norms_and_gradient(d_g) for gate, d_g in self._with_d(d)]
        known = [t for t in together if t is not None]
        if len(known) < len(together):
            return None
        return tf.add_n([squares for squares, _ in known]), tf.concat([g for _, g in known], axis=-1)

    def _with_d(self, d: tf.Tensor) -> list[tuple[Contraction, tf.Tensor]]:
        return list(zip(self.gates, tf.split(d, len(self.gates), axis=-1), strict=True))
