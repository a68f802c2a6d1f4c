"""ConAdvModel: a model wrapper that trains on adversarial images, made while it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from tf_largebatch.conadv import images as image_checks
from tf_largebatch.conadv.adversary import settings_dtype
from tf_largebatch.conadv.arguments import TRACED, VARIABLES, check_argument, check_fixed, warn_of_unit
from tf_largebatch.conadv.attack import attack_named
from tf_largebatch.conadv.attacked_loss import check_loss
from tf_largebatch.conadv.auxiliary_batch_norm import AuxiliaryBatchNorms
from tf_largebatch.conadv.backend import ConAdvTrainer, TrainFunction, step_context
from tf_largebatch.conadv.in_flight import InFlight
from tf_largebatch.conadv.input_range import inferred_range
from tf_largebatch.conadv.preparation import Preparation
from tf_largebatch.conadv.stale_weights import StaleWeights
from tf_largebatch.conadv.stream_metrics import ADVERSARIAL, AUGMENTED, CLEAN, StreamMetrics
from tf_largebatch.keras_internals import become_a_root, build_input_shape, layers_within
from tf_largebatch.training import delegation
from tf_largebatch.training.large_batch_model import LargeBatchModel
from tf_largebatch.training.step import Stream
from tf_largebatch.training.step_seed import Purpose


@keras.saving.register_keras_serializable(package="tf_largebatch")
class ConAdvModel(ConAdvTrainer, Preparation, StreamMetrics, LargeBatchModel):
    """Wraps a model of images so that it trains on adversarial images, made concurrently with the training.

    Step t, with theta_t the weights before it and x^ the adversarial images of the images x of its batch B_t:

        L    = mean L(theta_t; x, y)  +  adversarial_weight * mean L(theta_t; x^, y)  [ +  mean L(theta_t; x~, y) ]
        x^   = attack(theta_{t - staleness}; x, y), with theta_0 while t < staleness

    x goes through the model's own ("main") batch norms, x^ through a set of auxiliary batch norms, and with `augment`
    the augmented view x~ through another set; all other weights are shared. The losses are means over the batch and
    are added up, so that with `adversarial_weight=1` the gradient is about twice (with `augment` thrice) that of clean
    training. Layer-wise rates do not change with it; SGD may need a lower learning rate.

    The attack is projected gradient descent on the loss of a target class, or ascent on the loss of the label, with
    `targeted=False`; for one score [batch, 1], regression and several outputs there is ascent only:

        x^ <- projection of  x^ -+ step_size * sign(d loss / d x^)  onto  |x^ - x| <= epsilon  and the valid range

    With `staleness` 1 or more, a step trains on B_t and attacks B_{t+1} with weights from before the update. Neither
    waits for the other: where hardware is to spare, the step takes the time of the training alone. With 0 the
    adversarial pass waits for the attack ("DisAdv"). `fit` over N batches makes N updates either way. The streams run
    one after the other, so that the activations of one stream and of the attack are in memory.

    The wrapped model keeps its layers, weights, names and file format. `.model` is the clean classifier, which
    `evaluate`, `predict` and `export` use. Only while a pass is traced are its batch norms replaced by auxiliary ones.
    The attack writes no weight, moving average or seed. It runs in training mode with the statistics of the attacked
    batch; its random numbers depend on `seed`, the step and the replica alone.

    Logs of `fit`: `loss` (L and the regularizers), the compiled metrics on the clean images, `clean_loss`,
    `adversarial_loss` and `augmented_loss` (means of L without weight regularizers), `adversarial_accuracy` on the
    adversarial images trained on (of a classifier), `perturbation` (mean |x^ - x| in units of 1/255, with "l2" the mean
    distance) and `bn_distance` (`AuxiliaryBatchNorms.distance`).

    The snapshots of stale weights, the number of the step and the auxiliary batch norms are saved with the wrapper. The
    batch in flight is not: a run that is resumed at the first batch not yet trained on makes its adversarial images
    again. Before the first step, snapshots and auxiliary batch norms are taken from the model afresh, so weights may be
    loaded after wrapping. If its weights are replaced later, call `forget`.

    `epsilon`, `step_size` and `adversarial_weight` may be set while training, by a callback for instance, without a new
    trace; `num_steps`, `targeted`, `random_start`, `norm`, `seed` and `value_range` have the step traced anew.

    Args:
        model: The model, with one input of images [batch, height, width, channels]: a classifier with one score per
            class, [batch, classes], or with one score, [batch, 1], or any other model that Keras trains.
        epsilon: Radius of the ball in units of 1/255 of the value range, 0 or more: L-inf, or L2 distance over all
            values of an image.
        step_size: Length of a step in the same units; None for epsilon / num_steps, with which the steps together reach
            from a clean image to the ball's surface. For one step both are epsilon, the authors' setting.
        num_steps: Number of gradient steps, each a forward and backward pass.
        staleness: tau, the age in steps of the weights that the attack uses; 0 or more.
        targeted: Whether to descend the loss of a uniformly random wrong class instead of ascending the true one's.
            Must be False for a model without one score for each class.
        random_start: Probability with which an image's attack starts at a random point of the ball.
        value_range: (lower, upper) of valid model inputs after any scaling, or one such pair for each channel (channels
            last). Adversarial images are clipped to it. It converts `epsilon` and `step_size`: a unit is
            (upper - lower) / 255. None for the range that a Rescaling or Normalization layer at the model's input
            tells, see `tf_largebatch.conadv.input_range`, and (0, 255) where none does.
        adversarial_weight: Factor of the adversarial loss, 0 or more.
        augment: Keras layer or callable from images to images in the same range, which makes a third stream; None for
            none. Random numbers of a layer depend on `seed` and the step.
        num_classes: Number of classes; None to take it from the model's output.
        norm_examples: As in `LargeBatchModel`, for each stream.
        micro_batch_size: As in `LargeBatchModel`, for the attack too.
        attack: "pgd", or "noise" for a random point of the ball, the baseline of every attack.
        norm: "linf" or "l2".
        seed: Seed of targets, starts, noise, and of dropout inside the attack. A step compiled by XLA draws other
            starts and noise from it than one that is not.
        allow_generic: As in `LargeBatchModel`.
        name: The wrapper's name.

    Raises:
        ValueError: If an argument is out of its range; before the first step, if the inputs are not images, the labels
            do not fit the outputs, or a targeted attack has no wrong class to be the target.

    With CLARS each image of each stream counts as an example: `s_k` adds up over the streams as the loss does.
    AdvProp is `staleness=0` with several steps.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> from keras import layers
        >>> from tf_largebatch import CLARS
        >>> stack = [layers.Rescaling(1 / 255), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten()]
        >>> classifier = keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.Dense(10, activation="softmax")])
        >>> model = ConAdvModel(classifier, epsilon=4.0, staleness=1)
        >>> model.compile(CLARS(), "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.uniform(0, 255, (64, 8, 8, 3)), rng.integers(0, 10, 64)
        >>> history = model.fit(x, y, batch_size=32, verbose=0)
        >>> classifier.predict(x, verbose=0).shape
        (64, 10)

    Source: Liu, Chen, Cheng, Hsieh, You, "Concurrent Adversarial Learning for Large-Batch Training", arXiv 2106.00221
    (ICLR 2022), Algorithm 1; split batch norm: Xie et al., "Adversarial Examples Improve Image Recognition", arXiv
    1911.09665.
    """

    def __init__(
        self,
        model: keras.Model,
        epsilon: float = 4.0,
        step_size: float | None = None,
        num_steps: int = 1,
        staleness: int = 1,
        targeted: bool = True,
        random_start: float = 0.8,
        value_range: Sequence[Any] | None = None,
        adversarial_weight: float = 1.0,
        augment: Callable[[Any], Any] | None = None,
        num_classes: int | None = None,
        norm_examples: int | None = None,
        micro_batch_size: int | str | None = None,
        attack: str = "pgd",
        norm: str = "linf",
        seed: int = 0,
        allow_generic: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        arguments = {
            "epsilon": epsilon,
            "step_size": step_size,
            "num_steps": num_steps,
            "staleness": staleness,
            "targeted": targeted,
            "random_start": random_start,
            "value_range": inferred_range(model) if value_range is None else value_range,
            "adversarial_weight": adversarial_weight,
            "augment": augment,
            "num_classes": num_classes,
            "attack": attack,
            "norm": norm,
            "seed": seed,
        }
        arguments = {argument: check_argument(argument, value) for argument, value in arguments.items()}
        warn_of_unit(arguments["epsilon"])
        super().__init__(
            model,
            norm_examples=norm_examples,
            micro_batch_size=micro_batch_size,
            allow_generic=allow_generic,
            name=name or f"conadv_{getattr(model, 'name', model)}",
            **kwargs,
        )
        for argument, value in arguments.items():
            setattr(self, argument, value)
        self.adversarial_batch_norms = AuxiliaryBatchNorms(f"{self.name}/adversarial", name="adversarial")
        self.augmented_batch_norms = None
        if augment is not None:
            self.augmented_batch_norms = AuxiliaryBatchNorms(f"{self.name}/augmented", name="augmented")
        self.stale = StaleWeights(
            staleness if attack_named(attack).reads_weights else 0, prefix=self.name, name="stale"
        )
        names = [CLEAN, ADVERSARIAL] if augment is None else [CLEAN, ADVERSARIAL, AUGMENTED]
        self.stream_losses = {name: keras.metrics.Mean(name=f"{name}_loss") for name in names}
        self.adversarial_accuracy = keras.metrics.Mean(name="adversarial_accuracy")
        self.perturbation = keras.metrics.Mean(name="perturbation")
        self._checked = self._range_checked = self._has_trained = self._in_training = False
        self._in_flight = InFlight()
        # Past Keras's tracking: arguments of the constructor are no state to save.
        settings = keras.Variable(
            self._settings_values(), trainable=False, dtype=settings_dtype(), autocast=False, name="settings"
        )
        object.__setattr__(self, "_attack_functions", {})
        object.__setattr__(self, "_settings", settings)
        self.built = False
        if all(layer.built for layer in layers_within(model)):
            self._create_state()
            self.built = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks arguments that are set after the constructor, and has the step use them; see the class."""
        if "_settings" not in vars(self):
            super().__setattr__(name, value)
            return
        value = check_argument(name, value)
        check_fixed(name, value, getattr(self, name, None))
        super().__setattr__(name, value)
        if name in (*VARIABLES, "num_steps"):
            self._settings.assign(self._settings_values())
        if name in TRACED:
            self._trace_anew()

    def build(self, input_shape: Any) -> None:
        """Builds the wrapped model under its own names, and what belongs to the wrapper."""
        if self.stale.built:
            return
        # As if it were called by itself, and not inside the wrapper.
        become_a_root(self.model)
        self.model(keras.KerasTensor(tuple(input_shape), keras.config.floatx()))
        self._create_state()

    def get_build_config(self) -> dict[str, Any] | None:
        """Returns what `build` needs where the wrapped model does not know its input."""
        shape = build_input_shape(self)
        return None if shape is None else {"input_shape": shape}

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as `keras.Model.fit` does, with its arguments, after checks that need no step to fail."""
        arguments = delegation.fit_arguments(args, kwargs)
        if self.compiled:
            check_loss(self._compiled_loss())
        steps = arguments["steps_per_epoch"]
        self.start_training(steps and steps * (arguments["epochs"] - arguments["initial_epoch"]))
        try:
            with self._training():
                return super().fit(*args, **kwargs)
        finally:
            self._in_flight.clear()

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Makes one update, as `keras.Model.train_on_batch` makes it; also within `fit`, from a callback."""
        self.end_step()
        with self._training(aside=True):
            return super().train_on_batch(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the clean classifier as `keras.Model.evaluate` does."""
        with self._training(False):
            return super().evaluate(*args, **kwargs)

    @contextlib.contextmanager
    def _training(self, training: bool = True, aside: bool = False) -> Iterator[None]:
        """Within it Keras trains, on its data or on one batch aside, or does not."""
        before = self._in_training, self._in_flight.aside
        self._in_training, self._in_flight.aside = training, aside
        try:
            yield
        finally:
            self._in_training, self._in_flight.aside = before

    def start_training(self, updates: int | None = None) -> None:
        """Drops the batch in flight. `fit` calls this; so must a loop that calls the train function itself.

        Args:
            updates: How many there will be, so that no batch is drawn that will not be trained on; None if the data
                end by themselves.
        """
        self._checked = False
        self._in_flight.clear(updates)

    def make_train_function(self, force: bool = False) -> None:
        """Makes the function that `fit` calls for each step; see `TrainFunction`."""
        if self.train_function is None or force:
            self.train_function: Any = TrainFunction(self, self._in_flight, ahead=self.stale.staleness > 0)

    def forget(self) -> None:
        """Makes the present weights those of all earlier steps; to be called after other weights were loaded."""
        self.stale.reset()

    def training_step(self, data: Any) -> dict[str, Any]:
        """Attacks a batch with the stale weights of its step, then makes one update; see the class."""
        self.get_ready_in_step(data)
        return self.train_on_pair(data, self.attack_present(data))

    def train_on_pair(self, data: Any, adversarial: Any) -> dict[str, Any]:
        """Makes one update on a batch and its adversarial images."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = image_checks.as_floating(keras.tree.flatten(x)[0])
        streams = [
            Stream(x, CLEAN),
            Stream(
                adversarial, ADVERSARIAL, self._settings[2], replacements=self.adversarial_batch_norms.replacements()
            ),
        ]
        if self.augmented_batch_norms is not None:
            replacements = self.augmented_batch_norms.replacements()
            streams.append(Stream(self._augmented(x), AUGMENTED, replacements=replacements))
        self.stale.push()
        with step_context.named("train"):
            logs = self._update(streams, y, sample_weight)
        self.perturbation.update_state(self._image_attack().sizes(adversarial, x))
        return {**logs, **self.step_logs()}

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        names = (
            "epsilon",
            "step_size",
            "num_steps",
            "staleness",
            "targeted",
            "random_start",
            "value_range",
            "adversarial_weight",
            "num_classes",
            "attack",
            "norm",
            "seed",
        )
        augment = None if self.augment is None else keras.saving.serialize_keras_object(self.augment)
        return {**super().get_config(), **{name: getattr(self, name) for name in names}, "augment": augment}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> ConAdvModel:
        """Makes the object that `get_config` describes."""
        augment = config["augment"]
        if augment is not None:
            augment = keras.saving.deserialize_keras_object(augment, custom_objects=custom_objects)
        return super().from_config({**config, "augment": augment}, custom_objects)

    def _augmented(self, x: Any) -> Any:
        augment: Any = self.augment
        with step_context.named("augment"):
            if not isinstance(augment, keras.layers.Layer):
                return ops.cast(augment(x), x.dtype)
            with step_context.scope(self._layer_seeds(augment, self.stale.step, Purpose.AUGMENTATION)):
                return ops.cast(augment(x, training=True), x.dtype)
