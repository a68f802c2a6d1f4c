"""Concurrent adversarial learning inside the host's training step.

Liu, Chen, Cheng, Hsieh, You: "Concurrent Adversarial Learning for Large-Batch Training", arXiv 2106.00221, algorithm 1.
With staleness tau >= 1, step t on each replica

* trains on batch t and its adversarial copies, which were made with the weights of step t - tau (step 0's while
  t < tau), and
* makes the copies of batch t + 1 with the weights of step t + 1 - tau, of which training needs nothing within this
  step: the two run concurrently.

The copies of the coming batch wait in a variable of each replica. They are not saved: a resumed run, whose data start
anew as the host's do, makes the copies of its first batch within its first step, with the saved weights of step
t - tau. Random numbers depend on the seed, the step and the replica alone. So training that is interrupted continues
as if it had not been, as far as the data are the same.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import tensorflow as tf
from official.vision.ops import preprocess_ops

from tf_largebatch.core import pgd
from tf_largebatch.model_garden.streams import Blueprint, normalise_by_batch
from tf_largebatch.training.micro_batches import mapped_over_micro_batches

# A variable that each replica assigns for itself, without a word to the others; a checkpoint holds the first one's.
_OWN = {
    "trainable": False,
    "synchronization": tf.VariableSynchronization.ON_READ,
    "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
}


class Adversary:
    """Makes adversarial copies and keeps what that needs from one step to the next.

    Args:
        config: the `ConAdv` config.
        target: the network attacked: the one trained on the copies.
        num_classes: number of classes.
        batch_shape: of a replica's images, [B, H, W, C].
        dtype: of the images.
        micro_batch_size: how many images are attacked at a time; None for all.

    Attributes:
        past: the weights of steps t - 1, ..., t - tau, and
        age: how many of them there are, -1 until they mean anything: both to be saved in checkpoints.
    """

    def __init__(
        self,
        config: Any,
        target: Blueprint,
        num_classes: int,
        batch_shape: tuple[int, ...],
        dtype: Any,
        micro_batch_size: int | None = None,
    ) -> None:
        self._config = config
        self._num_classes = num_classes
        self._micro_batch_size = micro_batch_size
        value_range = _value_range(config)
        self._lower, self._upper = pgd.bounds(value_range)
        self._epsilon = pgd.in_input_units(config.epsilon, value_range)
        step_size = config.epsilon / config.num_steps if config.step_size is None else config.step_size
        self._step_size = pgd.in_input_units(step_size, value_range)
        self._live = target.raw_trainable()
        self.past: list[list[tf.Variable]] = []
        self.age = tf.Variable(-1, **_OWN)
        self._networks: tuple[Any, ...] = ()
        if config.attack == "noise":
            return
        siblings = {0: target.sibling(lambda original, *_: original)} if config.staleness < 2 else {}
        for age in range(1, config.staleness + 1):
            siblings[age] = self._sibling_of_the_past(target)
        now, first = siblings[max(0, config.staleness - 1)], siblings[config.staleness]
        self._networks = (now.network, first.network)
        for network in self._networks:
            normalise_by_batch(network)
        if config.staleness:
            self._waiting = tf.Variable(tf.zeros(batch_shape, dtype), **_OWN)
            self._is_waiting = tf.Variable(False, **_OWN)

    @property
    def looks_ahead(self) -> bool:
        """Whether a step needs the next step's batch too."""
        return self._config.attack != "noise" and self._config.staleness > 0

    def forget(self) -> None:
        """Sets the past weights to the present ones: training starts here."""
        self.age.assign(len(self.past))
        for variables in self.past:
            for mine, live in zip(variables, self._live, strict=True):
                mine.assign(live)

    def copies(self, images: tf.Tensor, labels: tf.Tensor, upcoming: Any, step: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """The adversarial copies of this step's batch, and those of the next one's (None without looking ahead).

        To be called in replica context before anything of the step changes a weight.

        Args:
            images: this step's, [B, H, W, C].
            labels: their classes, integers [B].
            upcoming: images and labels of the next step, or None.
            step: number of steps taken, an integer scalar.
        """
        if self._config.attack == "noise":
            seed = self._seeds(step)[1]
            pixels = (self._epsilon, self._lower, self._upper)
            return pgd.noise(images, *pixels, self._config.norm, seed), None
        now, first = self._networks
        if upcoming is None:
            return self._attack(now, images, labels, step), None
        tf.debugging.assert_equal(self.age, len(self.past), _OTHER_PAST)
        present = tf.cond(
            self._is_waiting, lambda: tf.identity(self._waiting), lambda: self._attack(first, images, labels, step)
        )
        return present, self._attack(now, *upcoming, step + 1)

    def remember(self, coming: tf.Tensor | None) -> None:
        """Ages the past weights by a step and puts the next batch's copies in wait; before the weights are updated."""
        ages = [*reversed(self.past), self._live]
        for older, newer in itertools.pairwise(ages):
            for mine, next_newer in zip(older, newer, strict=True):
                mine.assign(tf.convert_to_tensor(next_newer))
        if coming is not None:
            self._waiting.assign(coming)
            self._is_waiting.assign(True)

    def perturbation(self, images: tf.Tensor, copies: tf.Tensor) -> tf.Tensor:
        """Mean absolute change of a value, in pixels of 255; with "l2" the mean distance of an image."""
        one_pixel = tf.constant(pgd.in_input_units(1.0, _value_range(self._config)), tf.float32)
        change = (tf.cast(copies, tf.float32) - tf.cast(images, tf.float32)) / one_pixel
        if self._config.norm == "l2":
            return tf.reduce_mean(tf.sqrt(tf.reduce_sum(tf.square(change), axis=[1, 2, 3])))
        return tf.reduce_mean(tf.abs(change))

    def _sibling_of_the_past(self, target: Blueprint) -> Blueprint:
        """The target network with weights of its own, which join the past."""
        live = {id(variable) for variable in self._live}
        copies: dict[int, Any] = {}

        def choose(original: Any, next_creator: Any, kwargs: dict[str, Any]) -> Any:
            if id(original) not in live:
                return original
            zeros = functools.partial(tf.zeros, original.shape, original.dtype)
            copies[id(original)] = next_creator(**{**kwargs, **_OWN, "initial_value": zeros})
            return copies[id(original)]

        sibling = target.sibling(choose)
        self.past.append([copies[id(variable)] for variable in self._live])
        return sibling

    def _attack(self, network: Any, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        if self._micro_batch_size is None:
            return self._attack_at_once(network, images, labels, step)
        return mapped_over_micro_batches(
            lambda data, part: self._attack_at_once(network, *data, step, part),
            (images, labels),
            images,
            self._micro_batch_size,
        )

    def _attack_at_once(
        self, network: Any, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor, part: Any = 0
    ) -> tf.Tensor:
        config = self._config
        target_seed, start_seed = self._seeds(step, part)
        classes = labels
        if config.targeted:
            classes = pgd.random_wrong_classes(labels, self._num_classes, target_seed)

        def loss_gradient(x: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                logits = tf.cast(network(x, training=True), tf.float32)
                # A sum, so that the gradient of an image is no smaller in a large batch, where float16 would lose it.
                loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits))
            return tape.gradient(loss, x)

        return pgd.perturb(
            images,
            loss_gradient,
            epsilon=self._epsilon,
            step_size=self._step_size,
            num_steps=config.num_steps,
            lower=self._lower,
            upper=self._upper,
            descend=config.targeted,
            seed=start_seed,
            norm=config.norm,
            random_start_probability=config.random_start,
        )

    def _seeds(self, step: tf.Tensor, part: Any = 0) -> Any:
        """Seeds of the targets and of the starting points; different for each step, replica and micro-batch."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seed = tf.constant([self._config.seed, 0], tf.int32)
        for number in (step, replica, part):
            seed = tf.random.fold_in(seed, tf.cast(number, tf.int32), alg="philox")
        return tf.unstack(tf.random.split(seed, 2, alg="philox"))


def _value_range(config: Any) -> Any:
    """`[lower, upper]` of valid inputs for each channel."""
    if config.value_range is not None:
        flat = config.value_range
        return [flat[i : i + 2] for i in range(0, len(flat), 2)]
    # What the host's parser makes of 0 and 255.
    standardised = zip(preprocess_ops.MEAN_RGB, preprocess_ops.STDDEV_RGB, strict=True)
    return [((0.0 - mean) / deviation, (255.0 - mean) / deviation) for mean, deviation in standardised]


_OTHER_PAST = (
    "This run continues a checkpoint that was trained without task.conadv or with another task.conadv.staleness, which "
    "lacks the weights of past steps: train in a new --model_dir, from task.init_checkpoint if it is to continue."
)
