"""The loss that an attack ascends or descends, by the kind of model.

* `ClassLoss`: one score for each class, [batch, classes]. An attack may descend the loss of a wrong class.
* `BinaryLoss`: one score, [batch, 1], for yes or no.
* `GivenLoss`: everything else that Keras trains: regression, several outputs, images as outputs. An attack ascends the
  compiled loss with its weights, and there is no wrong class that could be a target.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import keras
from keras import ops

from tf_largebatch.check import message, require
from tf_largebatch.conadv import objective
from tf_largebatch.conadv.class_labels import (
    are_right,
    are_sparse,
    in_the_form_of,
    is_for_classes,
    is_of_keras,
    own_labels,
    random_targets,
)
from tf_largebatch.conadv.objective import Scores, scores_of
from tf_largebatch.conadv.probability_logarithms import plain_value
from tf_largebatch.keras_internals import build_compile_loss
from tf_largebatch.norms.targets import check_classes, classes_of
from tf_largebatch.training.loss_terms import calls_of_terms


class AttackedLoss(abc.ABC):
    """A loss, as an attack needs it.

    Attributes:
        num_classes: Number of classes; None where labels are no classes with one score each.
        has_answers: Whether an output is right or wrong; `are_right` says which.
    """

    num_classes: int | None = None
    has_answers = True

    def check_labels(self, y: Any) -> None:
        """Raises ValueError if the shape of labels does not fit the model's output."""
        del y

    def wrong_labels(self, y: Any, seed: Any) -> Any:
        """Returns labels of random wrong classes, in the form of the labels y.

        Args:
            y: Labels.
            seed: int32 [2].

        Raises:
            ValueError: If there are no classes: `require_untargeted` refuses such an attack before.
        """
        raise ValueError(f"A targeted attack needs one score for each class; {type(self).__name__} has none.")

    @abc.abstractmethod
    def direction(self, y: Any, sample_weight: Any, outputs: Any) -> tuple[Any, Any]:
        """Returns where to differentiate the model, and in which direction the loss of the labels y grows.

        Args:
            y: Labels.
            sample_weight: Weights of the examples, or None; they count where there are several outputs.
            outputs: What `probability_logarithms.followed` returned for the model.

        Returns:
            As `objective.direction`: tensors z and gradients.
        """

    def are_right(self, y: Any, outputs: Any) -> Any:
        """Returns for each image whether the model's outputs are right, bool [B].

        Raises:
            ValueError: If answers are neither right nor wrong, see `has_answers`.
        """
        raise ValueError(f"The outputs of a {type(self).__name__} are neither right nor wrong.")


@dataclasses.dataclass(frozen=True)
class ClassLoss(AttackedLoss):
    """The loss of a classifier with one score for each class.

    Attributes:
        loss: A Keras 3 loss, an object or a function.
        num_classes: Number of classes, 2 or more.
    """

    loss: Any
    num_classes: int

    def check_labels(self, y: Any) -> None:
        """Raises ValueError unless labels are integers that name classes, or rows of one number for each class."""
        are_sparse(y, self.num_classes)
        check_classes(self.loss, y, keras.KerasTensor((1, self.num_classes)))

    def wrong_labels(self, y: Any, seed: Any) -> Any:
        """Returns for each image a class that is not its own."""
        return in_the_form_of(y, random_targets(y, self.num_classes, seed), self.num_classes)

    def direction(self, y: Any, sample_weight: Any, outputs: Any) -> tuple[Any, Any]:
        """Returns the direction of the class's log-odds, which never vanishes."""
        del sample_weight
        return objective.direction(self.loss, y, own_labels(y, self.num_classes), outputs)

    def are_right(self, y: Any, outputs: Any) -> Any:
        """Returns whether the highest score is that of the label, or of one of the labels."""
        return are_right(y, outputs, self.num_classes)


@dataclasses.dataclass(frozen=True)
class BinaryLoss(AttackedLoss):
    """The loss of a classifier with one score, [batch, 1].

    Attributes:
        loss: A binary cross-entropy or a hinge loss of Keras's.
    """

    loss: Any

    def check_labels(self, y: Any) -> None:
        """Raises ValueError unless there is one number for each image."""
        shape = tuple(getattr(y, "shape", ()))
        fits = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
        require(fits, "y", shape, "one number for each image, [batch] or [batch, 1], for a model of one score")

    def direction(self, y: Any, sample_weight: Any, outputs: Any) -> tuple[Any, Any]:
        """Returns the direction away from the label, which never vanishes."""
        del sample_weight
        return objective.direction(self.loss, y, self._are_positive(y), outputs)

    def are_right(self, y: Any, outputs: Any) -> Any:
        """Returns whether the score lies on the label's side: of 0.5 for probabilities, of 0 for logits and margins."""
        outputs = plain_value(outputs)
        threshold = 0.5 if scores_of(self.loss) is Scores.BINARY_PROBABILITIES else 0.0
        return ops.reshape((outputs > threshold) == self._are_positive(y), [-1])

    def _are_positive(self, y: Any) -> Any:
        """Returns which labels say yes, bool [B, 1]. Those of hinge losses may be -1 and 1, or 0 and 1."""
        y = ops.cast(ops.reshape(y, [-1, 1]), "float32")
        return y > 0 if "hinge" in _name(self.loss).lower() else y >= 0.5


@dataclasses.dataclass(frozen=True)
class GivenLoss(AttackedLoss):
    """The compiled loss of any model: the sum of its terms with their weights, without regularizers.

    Attributes:
        compiled: The `CompileLoss` of the model, built.
    """

    compiled: Any
    has_answers = False

    def direction(self, y: Any, sample_weight: Any, outputs: Any) -> tuple[Any, Any]:
        """Returns the direction of the loss's gradient, divided for each image by its largest entry."""
        plain = keras.tree.map_structure(plain_value, outputs)
        followed = {id(t): made for t, made in zip(keras.tree.flatten(plain), keras.tree.flatten(outputs), strict=True)}
        calls = []
        for term, (labels, found, weights) in calls_of_terms(self.compiled, y, plain, sample_weight):
            found = keras.tree.map_structure(lambda t: followed.get(id(t), t), found)
            calls.append((term.loss, term.loss_weights, (labels, found, weights)))
        return objective.direction_of_total(calls)


def check_loss(loss: Any) -> list[Any]:
    """Returns the losses behind what was given to `compile`, those of all outputs in a list.

    Raises:
        ValueError: If there is none, or one of which only the labels would tell what it is.
    """
    needed = "a loss, which an adversarial attack ascends or descends"
    flat = [part for part in keras.tree.flatten(loss) if part is not None]
    require(bool(flat), "loss", loss, needed, "pass a loss to compile")
    short = len(flat) == 1 and isinstance(flat[0], str) and flat[0] in ("crossentropy", "ce")
    remedy = "write 'sparse_categorical_crossentropy', 'categorical_crossentropy' or 'binary_crossentropy'"
    require(not short, "loss", loss, f"{needed}, by its full name", remedy)
    return flat


def attacked_loss(loss: Any, output: Any, compiled: Any = None) -> AttackedLoss:
    """Returns the loss that an attack on a model ascends or descends.

    Args:
        loss: What was given to `compile`: a loss, or a nest of losses for several outputs.
        output: What the model gives: tensors or their specifications.
        compiled: The `CompileLoss` that `compile` made of it; None where only losses with right and wrong answers are
            needed.

    Raises:
        ValueError: If there is no loss; if the output does not fit a loss for classes; without `compiled`, if answers
            are not right or wrong.
    """
    flat = check_loss(loss)
    if len(flat) == 1 and not keras.tree.is_nested(output):
        one, shape = keras.losses.get(flat[0]), tuple(output.shape)
        is_binary = scores_of(one) in (Scores.BINARY_LOGITS, Scores.BINARY_PROBABILITIES)
        if is_binary and len(shape) == 2 and shape[1] == 1:
            return BinaryLoss(one)
        # A loss of one's own may be for anything: of [batch, classes] it is taken to be for classes.
        if is_for_classes(one) and len(shape) == 2 and (is_of_keras(one) or shape[1] != 1):
            return ClassLoss(one, classes_of(output))
    if compiled is None:
        name = ", ".join(_name(keras.losses.get(part)) for part in flat)
        rule = "one loss for classes, [batch, classes], or for one score, [batch, 1], whose answers are right or wrong"
        raise ValueError(message("loss", rule, name, "metrics_under_attack measures the metrics of any model"))
    return GivenLoss(compiled)


def build_loss(compiled: Any, y: Any, output: Any, sample_weight: Any) -> None:
    """Builds a compiled loss, unless it is built, from the labels, outputs and weights of a batch or their specs.

    Raises:
        ValueError: If labels do not fit the outputs and the losses.
    """
    if compiled.built:
        return
    try:
        build_compile_loss(compiled, y, output, sample_weight)
    except (KeyError, TypeError, ValueError) as error:
        labels, outputs = (keras.tree.map_structure(lambda t: tuple(t.shape), nest) for nest in (y, output))
        reason = str(error).splitlines()[0].rstrip(".")
        rule = "labels that fit the losses and the outputs, integers for sparse losses and rows for others"
        raise ValueError(message("y", rule, labels, f"the outputs are of shape {outputs}; {reason}")) from error


def require_untargeted(attacked: AttackedLoss, targeted: bool, remedy: str = "pass targeted=False") -> None:
    """Raises ValueError for a targeted attack on a model without wrong classes."""
    require(
        not targeted or attacked.num_classes is not None,
        "targeted",
        targeted,
        "False for a model without one score for each of several classes: there is no wrong class to be the target",
        remedy,
    )


def _name(loss: Any) -> str:
    return getattr(loss, "__name__", None) or type(loss).__name__
