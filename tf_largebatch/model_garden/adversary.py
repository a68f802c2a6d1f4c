"""Concurrent adversarial learning inside Model Garden's training step.

Liu, Chen, Cheng, Hsieh, You: "Concurrent Adversarial Learning for Large-Batch Training", arXiv 2106.00221, algorithm 1.
With staleness tau >= 1, step t on each replica

* trains on batch t and on its adversarial images, which were made with the weights of step t - tau (those of step 0
  while t < tau), and
* makes the adversarial images of batch t + 1 with the weights of step t + 1 - tau. Training needs nothing of that
  within this step, so the two run concurrently.

The adversarial images of the next batch wait in a variable of each replica. They are not saved: the data of a resumed
run start anew, and its first step makes the adversarial images of its own batch with the saved weights of step t - tau.
Random numbers depend on the seed, the step, the replica and the micro-batch only. So an interrupted run continues as
if it had not been interrupted, as far as the data are the same.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import keras
import tensorflow as tf
from official.vision.ops import preprocess_ops

from tf_largebatch.conadv.attack import ImageAttack, attack_named
from tf_largebatch.conadv.attacked_loss import ClassLoss
from tf_largebatch.model_garden.rebuildable import RebuildableNetwork, normalize_by_batch
from tf_largebatch.training.micro_batches import mapped_over_micro_batches
from tf_largebatch.training.step_seed import step_seed

# A variable that each replica assigns for itself, without communication; a checkpoint holds the first replica's value.
_OF_REPLICA = {
    "trainable": False,
    "synchronization": tf.VariableSynchronization.ON_READ,
    "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
}
# Model Garden's classifiers give logits.
_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Adversary:
    """Makes adversarial images and keeps what that needs from one step to the next.

    Args:
        config: The `ConAdv` config.
        target: The network to attack: the one that is trained on the adversarial images.
        num_classes: Number of classes.
        batch_shape: Shape of a replica's images, [B, H, W, C].
        dtype: Their dtype.
        micro_batch_size: How many images are attacked at a time; None for all.

    Attributes:
        snapshots: The weights of steps t - 1, ..., t - tau, to be saved in checkpoints.
        age: How many snapshots there are, -1 until they mean anything; to be saved as well.
    """

    def __init__(
        self,
        config: Any,
        target: RebuildableNetwork,
        num_classes: int,
        batch_shape: tuple[int, ...],
        dtype: Any,
        micro_batch_size: int | None = None,
    ) -> None:
        self._config = config
        self._num_classes = num_classes
        self._micro_batch_size = micro_batch_size
        self._attack = image_attack(config)
        self._trained = target.raw_trainable()
        self.snapshots: list[list[tf.Variable]] = []
        self.age = tf.Variable(-1, **_OF_REPLICA)
        self._networks: tuple[Any, ...] = (None, None)
        if not attack_named(config.attack).reads_weights:
            return
        # The networks by the age of their weights; 0 are those that are trained.
        networks = {0: target.rebuild(lambda original, *_: original)} if config.staleness < 2 else {}
        for age in range(1, config.staleness + 1):
            networks[age] = self._with_snapshots(target)
        for network in networks.values():
            normalize_by_batch(network.network)
        self._networks = (networks[max(0, config.staleness - 1)].network, networks[config.staleness].network)
        if self.needs_next_batch:
            self._waiting = tf.Variable(tf.zeros(batch_shape, dtype), **_OF_REPLICA)
            self._is_waiting = tf.Variable(False, **_OF_REPLICA)

    @property
    def needs_next_batch(self) -> bool:
        """Whether a step needs the next step's batch as well."""
        return needs_next_batch(self._config)

    def reset(self) -> None:
        """Sets all snapshots to the present weights, as they are before the first step."""
        self.age.assign(len(self.snapshots))
        for variables in self.snapshots:
            for mine, trained in zip(variables, self._trained, strict=True):
                mine.assign(trained)

    def images(self, images: tf.Tensor, labels: tf.Tensor, upcoming: Any, step: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Makes the adversarial images of this step's batch and of the next one's (None if they are not needed yet).

        To be called in replica context, before the step changes any weight.

        Args:
            images: This step's images, [B, H, W, C].
            labels: Their classes, integers [B].
            upcoming: Images and labels of the next step, or None.
            step: Number of steps taken, an integer scalar.
        """
        next_network, this_network = self._networks
        if upcoming is None:
            return self._attacked(this_network, images, labels, step), None
        tf.debugging.assert_equal(self.age, len(self.snapshots), _OTHER_SNAPSHOTS)
        present = tf.cond(
            self._is_waiting,
            lambda: tf.identity(self._waiting),
            lambda: self._attacked(this_network, images, labels, step),
        )
        next_images, next_labels = upcoming
        return present, self._attacked(next_network, next_images, next_labels, step + 1)

    def push(self, coming: tf.Tensor | None) -> None:
        """Makes the present weights those of one step ago and keeps the next batch's adversarial images.

        To be called before the update.
        """
        ages = [*reversed(self.snapshots), self._trained]
        for older, newer in itertools.pairwise(ages):
            for mine, next_newer in zip(older, newer, strict=True):
                mine.assign(tf.convert_to_tensor(next_newer))
        if coming is not None:
            self._waiting.assign(coming)
            self._is_waiting.assign(True)

    def perturbation(self, adversarial: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns the mean size of the perturbations in units of 1/255, as `ImageAttack.sizes` defines it."""
        return tf.reduce_mean(self._attack.sizes(tf.cast(adversarial, tf.float32), tf.cast(images, tf.float32)))

    def _with_snapshots(self, target: RebuildableNetwork) -> RebuildableNetwork:
        """Returns the target network with weights of its own, which join the snapshots."""
        trained = {id(variable) for variable in self._trained}
        mine: dict[int, Any] = {}

        def choose(original: Any, next_creator: Any, kwargs: dict[str, Any]) -> Any:
            if id(original) not in trained:
                return original
            zeros = functools.partial(tf.zeros, original.shape, original.dtype)
            mine[id(original)] = next_creator(**{**kwargs, **_OF_REPLICA, "initial_value": zeros})
            return mine[id(original)]

        rebuilt = target.rebuild(choose)
        self.snapshots.append([mine[id(variable)] for variable in self._trained])
        return rebuilt

    def _attacked(self, network: Any, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        def attacked(batch: tuple[tf.Tensor, tf.Tensor], part: Any) -> tf.Tensor:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group

            def scores(x: tf.Tensor) -> tf.Tensor:
                return network(x, training=True)

            def seeds(purpose: Any) -> tf.Tensor:
                return step_seed(self._config.seed, step, purpose, replica, part)

            return self._attack.images(*batch, scores, ClassLoss(_LOSS, self._num_classes), seeds).images

        if self._micro_batch_size is None:
            return attacked((images, labels), 0)
        return mapped_over_micro_batches(attacked, (images, labels), images, self._micro_batch_size)


def image_attack(config: Any) -> ImageAttack:
    """Returns the attack that a `ConAdv` config describes."""
    return ImageAttack(
        epsilon=config.epsilon,
        value_range=value_range(config),
        step_size=config.step_size,
        num_steps=config.num_steps,
        targeted=config.targeted,
        random_start=config.random_start,
        kind=config.attack,
        norm=config.norm,
    )


def needs_next_batch(config: Any) -> bool:
    """Returns whether training steps with a `ConAdv` config need the next step's batch as well."""
    return config.enabled and config.staleness > 0 and attack_named(config.attack).reads_weights


def value_range(config: Any) -> list[tuple[float, float]]:
    """Returns `(lower, upper)` of valid inputs for each channel.

    By default it is what Model Garden's parser makes of 0 and 255.
    """
    if config.value_range is not None:
        flat = config.value_range
        return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
    standardized = zip(preprocess_ops.MEAN_RGB, preprocess_ops.STDDEV_RGB, strict=True)
    return [((0.0 - mean) / deviation, (255.0 - mean) / deviation) for mean, deviation in standardized]


_OTHER_SNAPSHOTS = (
    "This run continues a checkpoint that was trained without task.conadv or with another task.conadv.staleness, which "
    "lacks the weights of past steps: train in a new --model_dir, from task.init_checkpoint if it is to continue."
)
