"""Training under any `tf.distribute` strategy, several hosts included, where Keras 3's own `fit` fails.

`fit` here does what `keras.Model.fit` does with a dataset of global batches, and three things that it does not:

* it works under `tf.distribute.MultiWorkerMirroredStrategy`: every worker calls it with the same arguments;
* at the end of each epoch the moving averages of batch normalizations, which each replica keeps from its own share of
  the batches, become their mean over the replicas, so that every replica evaluates, and the first one saves, the same
  model. (With `synchronized=True` they agree already.)
* an evaluation batch too small to give every replica an example is evaluated by those that got one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_largebatch.backend.tensorflow.sized_step import SizedTrainFunction, explaining_out_of_memory
from tf_largebatch.conadv import ConAdvModel
from tf_largebatch.distribute import strategies
from tf_largebatch.keras_internals import layers_within
from tf_largebatch.training import LargeBatchModel
from tf_largebatch.training.automatic_size import AUTO


def fit(
    model: keras.Model,
    training: tf.data.Dataset,
    *,
    epochs: int,
    steps_per_epoch: int,
    initial_epoch: int = 0,
    validation_data: tf.data.Dataset | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int = 1,
) -> keras.callbacks.History:
    """Trains a compiled model under the strategy in whose scope it was made.

    Every worker must call this with the same arguments, datasets that give the same batches, and callbacks that do
    the same: reading a metric communicates, so one worker alone would wait for ever. Those that write files must
    write elsewhere on each worker. What a callback sees after a step are the numbers of this worker's first replica;
    after an epoch, those of all examples.

    Args:
        model: A compiled model: `LargeBatchModel`, `ConAdvModel` or any other of Keras's.
        training: Batches of the size of the whole update, `steps_per_epoch` for each epoch to come; they are split into
            equal shares for the replicas. The data of every worker are those of the whole batch, of which it uses its
            share.
        epochs: Number of the last epoch.
        steps_per_epoch: Updates of an epoch.
        initial_epoch: Epochs already done.
        validation_data: Batches to evaluate after each epoch.
        callbacks: Keras callbacks.
        verbose: 0, 1 or 2, as in `keras.Model.fit`.

    Returns:
        The history of the epochs' logs.

    Raises:
        ValueError: If the model is not compiled, or with XLA for several replicas, the batches cannot be shared
            equally, or there are too few.
    """
    strategy = model.distribute_strategy
    if not model.compiled:
        raise ValueError(f"{model.name} must be compiled before it is trained.")
    replicas = strategy.num_replicas_in_sync
    if model.jit_compile and replicas > 1 and not isinstance(strategy, tf.distribute.TPUStrategy):
        raise ValueError(
            f"jit_compile must be False with {replicas} replicas: XLA compiles a step of one device; received "
            "jit_compile=True: compile the update alone, by the optimizer's jit_compile=True."
        )
    batch_size = keras.tree.flatten(training.element_spec)[0].shape[0]
    if batch_size is not None:
        strategies.check_batch(batch_size, strategy.num_replicas_in_sync)
        if isinstance(model, LargeBatchModel):
            model._check_before_training(batch_size // strategy.num_replicas_in_sync)
    if isinstance(model, LargeBatchModel) and model.micro_batch_size is not None:
        model._check_losses(training, None, None)
    available, needed = int(training.cardinality()), (epochs - initial_epoch) * steps_per_epoch
    if 0 <= available < needed:
        raise ValueError(
            f"training must hold {needed} batches, {steps_per_epoch} for each epoch to come; it holds {available}."
        )
    _create_variables(model, training.element_spec)
    step = _train_function(model, needed)
    evaluate = None if validation_data is None else _Evaluation(model, validation_data)
    average = _batch_norm_averaging(model)
    called = keras.callbacks.CallbackList(
        list(callbacks),
        add_history=True,
        add_progbar=verbose != 0,
        model=model,
        epochs=epochs,
        steps=steps_per_epoch,
        verbose=verbose,
    )
    # Of an endless dataset several hosts need not agree, before every step, that there is a next batch.
    batches = iter(strategy.experimental_distribute_dataset(_sharded_by_example(training.repeat())))
    model.stop_training = False
    try:
        called.on_train_begin()
        logs: dict[str, Any] = {}
        for epoch in range(initial_epoch, epochs):
            model.reset_metrics()
            called.on_epoch_begin(epoch)
            for number in range(steps_per_epoch):
                called.on_train_batch_begin(number)
                with explaining_out_of_memory(model):
                    logs = step(batches)
                called.on_train_batch_end(number, logs)
            # Metrics first: they are of the batches of this epoch.
            logs = {**logs, **model.get_metrics_result()}
            average()
            if evaluate is not None:
                logs.update(evaluate(called))
            logs = {name: float(value) for name, value in logs.items()}
            called.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        model.optimizer.finalize_variable_values(model.trainable_variables)
        called.on_train_end(logs)
    finally:
        if isinstance(model, LargeBatchModel):
            model.end_of_fit()
    return model.history


def _create_variables(model: keras.Model, element_spec: Any) -> None:
    """Creates what Keras creates in the first step, where a replica cannot: the optimizer's variables and metrics'."""
    strategy = model.distribute_strategy
    with strategy.scope():
        if not model.built:
            model.build((None, *keras.tree.flatten(element_spec)[0].shape[1:]))
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
    one_example = tf.nest.map_structure(lambda spec: tf.zeros((1, *spec.shape[1:]), spec.dtype), element_spec)
    strategy.run(model.test_step, args=(one_example,))
    model.reset_metrics()


class _Evaluation:
    """`keras.Model.evaluate` over the whole dataset."""

    def __init__(self, model: keras.Model, data: tf.data.Dataset) -> None:
        self._model = model
        self._batches = model.distribute_strategy.experimental_distribute_dataset(_sharded_by_example(data))
        self._step = _on_all_replicas(model, self._test_step)

    def __call__(self, callbacks: keras.callbacks.CallbackList) -> dict[str, Any]:
        """Evaluates; the metrics' names begin with `val_`."""
        callbacks.on_test_begin()
        self._model.reset_metrics()
        for batch in self._batches:
            self._step(batch)
        logs = self._model.get_metrics_result()
        callbacks.on_test_end(logs)
        return {f"val_{name}": value for name, value in logs.items()}

    def _test_step(self, batch: Any) -> None:
        def evaluate() -> tf.Tensor:
            self._model.test_step(batch)
            return tf.constant(True)

        examples = keras.tree.flatten(batch)[0]
        # The mean loss of no examples is NaN.
        tf.cond(tf.shape(examples)[0] > 0, evaluate, lambda: tf.constant(False))


def _train_function(model: keras.Model, steps: int) -> Callable[[Any], dict[str, Any]]:
    """Makes one update with the next batch of an iterator."""
    one_batch = (keras.Model.make_train_function, LargeBatchModel.make_train_function)
    if type(model).make_train_function not in one_batch:
        # A model that does more than one batch at a time, such as ConAdvModel: its function is made for strategies.
        model.make_train_function()
        if isinstance(model, ConAdvModel):
            model.start_training(steps)
        return model.train_function
    first = model.distribute_strategy.experimental_local_results

    def on_batches() -> Callable[[Any], dict[str, Any]]:
        run = _on_all_replicas(model, model.train_step)
        return lambda data: {name: first(value)[0] for name, value in run(data).items()}

    if isinstance(model, LargeBatchModel) and model.micro_batch_size == AUTO:
        return SizedTrainFunction(model, on_batches)
    step = on_batches()
    return lambda batches: step(next(batches))


def _on_all_replicas(model: keras.Model, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns the function run by every replica on its share of a batch, compiled as the model is."""
    function = tf.autograph.experimental.do_not_convert(function)

    @tf.autograph.experimental.do_not_convert
    def run(batch: Any) -> Any:
        return model.distribute_strategy.run(function, args=(batch,))

    return run if model.run_eagerly else tf.function(run, reduce_retracing=True, jit_compile=model.jit_compile)


def _batch_norm_averaging(model: keras.Model) -> Callable[[], None]:
    """Returns what makes the batch normalizations' moving averages their mean over the replicas."""
    layers = [layer for layer in layers_within(model) if isinstance(layer, keras.layers.BatchNormalization)]
    variables = [v for layer in layers if layer.built for v in (layer.moving_mean, layer.moving_variance)]
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync == 1 or not variables:
        return lambda: None

    def average() -> None:
        context = tf.distribute.get_replica_context()
        # A copy has the replica's device, a variable read on a single device of several hosts has none.
        values = [tf.identity(v.value) for v in variables]
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, values)
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean)

    return tf.function(lambda: strategy.run(average), autograph=False)


def _sharded_by_example(data: tf.data.Dataset) -> tf.data.Dataset:
    """Tells TensorFlow to cut every batch, and not the list of files, into the workers' shares."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.with_options(options)
