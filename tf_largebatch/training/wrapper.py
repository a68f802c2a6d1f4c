"""A Keras model around another one, which leaves that one's weights, names and own methods as they are."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from tf_largebatch.keras_internals import default_jit_compile, layers_within
from tf_largebatch.training import delegation, fit_data
from tf_largebatch.training.trainer import Trainer


class Wrapper(Trainer, keras.Model):
    """Calls the model that it wraps, with its own loss and metrics; a subclass defines `training_step`.

    Attributes:
        model: The wrapped model.
    """

    model: keras.Model

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Returns the wrapped model's output."""
        del training  # the call context passes it on
        if mask is not None and "mask" in inspect.signature(self.model.call).parameters:
            return self.model(inputs, mask=mask)
        return self.model(inputs)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as `keras.Model.fit` does, on labels that fit the model."""
        arguments = delegation.fit_arguments(args, kwargs)
        self.check_labels(arguments["y"], arguments["sample_weight"])
        return super().fit(*args, **kwargs)

    def check_labels(self, y: Any, sample_weight: Any = None) -> None:
        """Raises ValueError unless labels name classes of the model; see `fit_data.check_labels`.

        Args:
            y: Labels, or None.
            sample_weight: Their weights, or None.
        """
        if y is not None and self.compiled and not delegation.overrides(self.model, "compute_loss"):
            fit_data.check_labels(self.model, self.loss, y, sample_weight)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Exports the wrapped model: `keras.Model.export` of `.model`."""
        return self.model.export(*args, **kwargs)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the compiled loss and the layers' losses, or the wrapped model's own `compute_loss`."""
        arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight, "training": training}
        if not delegation.overrides(self.model, "compute_loss"):
            return super().compute_loss(**arguments)
        return delegation.compute_loss(self.model, self, arguments)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Updates the metrics, by the wrapped model's own `compute_metrics` if it has one, and returns the logs."""
        if not delegation.overrides(self.model, "compute_metrics"):
            return super().compute_metrics(x, y, y_pred, sample_weight)
        with delegation.compiled_as(self.model, self) as model:
            return model.compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the metrics' values by name."""
        if not delegation.overrides(self.model, "get_metrics_result"):
            return super().get_metrics_result()
        with delegation.compiled_as(self.model, self) as model:
            return model.get_metrics_result()

    @property
    def metrics(self) -> list[Any]:
        """The loss, the compiled metrics and the wrapped model's own ones."""
        if not hasattr(self, "model"):  # while the constructor runs
            return super().metrics
        with delegation.compiled_as(self.model, self) as model:
            return list(model.metrics)

    def get_compile_config(self) -> dict[str, Any]:
        """Arguments of `compile`. The default of `jit_compile` stays "auto", so that another backend has its own."""
        config = super().get_compile_config()
        if config and not self.run_eagerly and config.get("jit_compile") == default_jit_compile(self):
            config["jit_compile"] = "auto"
        return config

    def _build_wrapped(self, x: Any) -> None:
        """Builds a model that `fit` got unbuilt, under its own names, before its variables are listed."""
        if not all(layer.built for layer in layers_within(self.model)):
            self.model(
                keras.tree.map_structure(
                    lambda t: keras.KerasTensor(t.shape, keras.backend.standardize_dtype(t.dtype)), x
                )
            )

    def _trace_anew(self) -> None:
        """Has the next step traced anew, also in the middle of a `fit`."""
        if getattr(self, "train_function", None) is not None:
            self.make_train_function(force=True)
