"""The loss and the metrics of any model under attack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.check import require
from tf_largebatch.conadv.attacked_loss import AttackedLoss, attacked_loss, build_loss, check_loss
from tf_largebatch.conadv.model_attacks import ModelAttacks
from tf_largebatch.keras_internals import compiled_loss, loss_tracker


def metrics_under_attack(
    model: keras.Model,
    batches: Iterable[Any],
    epsilon: float = 4.0,
    value_range: Sequence[Any] | None = None,
    num_steps: int = 1,
    step_size: float | None = None,
    targeted: bool = False,
    random_start: float = 0.0,
    norm: str = "linf",
    seed: int = 0,
) -> dict[str, float]:
    """Returns the compiled loss and metrics of a model on adversarial images made with its own gradients.

        x^ = projection of  x + step_size * sign(d L(y, model(x)) / d x)  onto  |x^ - x| <= epsilon  and the range

    L is the loss that the model was compiled with: of a classifier, of one score, of regression, or the weighted total
    of several outputs. Layers run in inference mode, and no weight is written; the metrics start anew and are reset at
    the end. Regularizers, and losses that layers add, are left out.

    Args:
        model: A compiled model with one input, images [batch, height, width, channels].
        batches: Batches of images in `value_range`, labels and, if there are any, weights of the examples: such as a
            `tf.data.Dataset` or a list of tuples of arrays. For several outputs, labels are nested as for `evaluate`.
        epsilon: Radius of the ball, in units of 1/255; 0 for the metrics on the images as they are.
        value_range: `(lower, upper)` of valid inputs, or one such pair for each channel; None to infer it from the
            model's first layers, as in `ConAdvModel`.
        num_steps: Number of gradient steps.
        step_size: Length of a step, in units of 1/255; None for epsilon / num_steps.
        targeted: Whether to descend a random wrong class's loss instead; only with one score for each class.
        random_start: Probability of a random point of the ball as the starting point.
        norm: "linf" or "l2".
        seed: Seed of targets and starts, together with the number of the batch.

    Returns:
        The loss and the metrics by name, as `model.evaluate(..., return_dict=True)` names them.

    Warns:
        UserWarning: If the first batch does not fit `value_range`, or if the gradient of 5 % of the images or more is
            zero, so that the attack cannot change them.

    Raises:
        ValueError: If the model is not compiled with a loss, if an argument is out of its range, if inputs are not
            images, if there are none, or if a targeted attack has no wrong class.

    Source: as `accuracy_under_attack`.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> net = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(1)])
        >>> net.compile(loss="mean_squared_error", metrics=["mean_absolute_error"])
        >>> batches = [(np.full((8, 4, 4, 1), 0.5, "float32"), np.zeros((8, 1), "float32"))]
        >>> sorted(metrics_under_attack(net, batches, epsilon=8.0, value_range=(0.0, 1.0)))
        ['loss', 'mean_absolute_error']
    """
    require(
        model.compiled,
        "model",
        model.name,
        "compiled",
        "call compile with a loss and metrics, or pass the wrapper that is compiled",
    )
    check_loss(model.loss)
    total = compiled_loss(model)

    def loss(y: Any, outputs: Any, sample_weight: Any) -> AttackedLoss:
        build_loss(total, y, outputs, sample_weight)
        return attacked_loss(model.loss, outputs, total)

    attacks = ModelAttacks(
        model,
        loss,
        lambda loss, y, outputs: outputs,
        epsilon=epsilon,
        value_range=value_range,
        num_steps=num_steps,
        step_size=step_size,
        targeted=targeted,
        random_start=random_start,
        norm=norm,
        seed=seed,
    )
    logs: dict[str, Any] = {}
    model.reset_metrics()
    try:
        for size, y, sample_weight, outputs in attacks(batches):
            loss_tracker(model).update_state(total(y, outputs, sample_weight), sample_weight=size)
            logs = model.compute_metrics(None, y, outputs, sample_weight)
        return {name: _plain(value) for name, value in logs.items()}
    finally:
        model.reset_metrics()


def _plain(value: Any) -> Any:
    """Returns a metric's value as a number of Python, or as an array where it has several."""
    value = ops.convert_to_numpy(value)
    return value.item() if value.size == 1 else value
