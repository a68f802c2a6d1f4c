"""The registry of the tf_keras world."""

from __future__ import annotations

from tf_largebatch.norms.registry import Registry

TF_KERAS = Registry(
    register="tf_largebatch.tf_keras.norms.TF_KERAS.register", generic="task.gradient_norms.allow_generic"
)
