"""What ConAdvModel checks and creates before its first step."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tf_largebatch.check import require
from tf_largebatch.conadv import images as image_checks
from tf_largebatch.conadv.adversary import Adversary
from tf_largebatch.conadv.attacked_loss import build_loss, check_loss
from tf_largebatch.conadv.auxiliary_batch_norm import AuxiliaryBatchNorms
from tf_largebatch.conadv.backend import step_context
from tf_largebatch.keras_internals import compiled_loss
from tf_largebatch.training.trainer import in_strategy, outside_of_the_step


class Preparation(Adversary):
    """The part of ConAdvModel that gets it ready for a batch.

    Attributes:
        augmented_batch_norms: The auxiliary batch norms of augmented images; None without an augmented stream.
    """

    augmented_batch_norms: AuxiliaryBatchNorms | None
    _checked: bool
    _range_checked: bool
    _has_trained: bool

    def get_ready(self, data: Any) -> None:
        """Does what must be done outside of the compiled step, given a batch.

        Raises:
            ValueError: If images, labels, loss or model do not fit together.
        """
        if not self._checked:
            self._check(data)
            self._checked = True
        if not self._has_trained:
            with outside_of_the_step(), in_strategy(self):
                self._make_state_current()

    def _check(self, data: Any) -> None:
        """Raises ValueError if images, labels, loss or model do not fit together; builds the model."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(step_context.of_one_replica(self, data))
        image_checks.check_are_images(x)
        x = keras.tree.flatten(x)[0]
        image_checks.check_channels(self.value_range, x)
        check_loss(self._compiled_loss())
        with outside_of_the_step(), in_strategy(self):
            if not self.built:
                self.build((None, *x.shape[1:]))
            image_checks.check_accepts_floating(self.model)
            self._check_loss(x, y, sample_weight)
        if not self._range_checked and step_context.is_known(x):
            self._range_checked = True
            image_checks.warn_unless_in_range(x, self.value_range)

    def _check_loss(self, x: Any, y: Any, sample_weight: Any) -> None:
        """Raises ValueError unless the loss fits the model, its labels and the attack; builds the compiled loss."""
        spec = keras.KerasTensor((None, *x.shape[1:]), keras.config.floatx())
        object.__setattr__(self, "_output", self.model.compute_output_spec(spec))  # past Keras's tracking
        loss = self.loss_to_attack()
        classes = loss.num_classes
        rule = f"the number of the model's outputs, {classes}, or None" if classes else "None, as there are no classes"
        require(self.num_classes in (None, classes), "num_classes", self.num_classes, rule)
        loss.check_labels(y)
        output = self.model.compute_output_spec(keras.KerasTensor(x.shape, keras.config.floatx()))
        build_loss(compiled_loss(self), y, output, sample_weight)

    def _create_state(self) -> None:
        """Creates the auxiliary batch norms and the snapshots, once the wrapped model has its variables."""
        for batch_norms in self._auxiliary_batch_norms():
            batch_norms.create(self.model)
            batch_norms.built = True
        self.stale.create(self._attacked_variables())
        self.stale.built = True

    def _make_state_current(self) -> None:
        """Before the first step: auxiliary batch norms and snapshots are those of the model's present weights."""
        for batch_norms in self._auxiliary_batch_norms():
            batch_norms.follow_trainable()
        augment: Any = self.augment
        count = len(getattr(augment, "trainable_variables", None) or ())
        require(count == 0, "augment", augment, f"a layer without weights to train (it has {count})", "freeze it")
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        step = self.stale.step.value
        # Of a variable of several replicas Keras cannot make an array.
        if int(step.numpy() if hasattr(step, "numpy") else ops.convert_to_numpy(step)):
            self._has_trained = True
            return
        for batch_norms in self._auxiliary_batch_norms():
            batch_norms.copy_from_main()
        self.stale.reset()

    def _auxiliary_batch_norms(self) -> list[AuxiliaryBatchNorms]:
        return [bns for bns in (self.adversarial_batch_norms, self.augmented_batch_norms) if bns is not None]
