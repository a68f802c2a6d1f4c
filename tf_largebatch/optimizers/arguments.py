"""The constructor arguments of the layer-wise optimizers, once for both Keras worlds: their text, checks and values."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
from keras import ops

from tf_largebatch import check
from tf_largebatch.core.exclusions import Exclusion

# What several docstrings say, in place of its name in double braces.
TEXTS = {
    "update": """classic momentum:   v <- momentum * v + learning_rate * rate * g ;   w <- w - v
        popular momentum:   v <- momentum * v + g ;                          w <- w - learning_rate * rate * v""",
    "numerics": """With `nesterov` the last step becomes `w <- w - (momentum * v + learning_rate * rate * g)` and
    `w <- w - learning_rate * rate * (g + momentum * v)`. Norms are Euclidean; they, the rates and the update are
    computed in float32 at least. A NaN or infinite norm makes the rate and the update NaN.""",
    "norm_exponent": """norm_exponent: Exponent `q` of the measured norm in the denominator, from 0 to 1. 1 is the
            paper's CLARS. 0 divides by the norm of the batch's gradient, as LARS does but without the decay term, and
            needs no measured norms.""",
    "max_agreement": """max_agreement: Cap on `||grad|| / d`, in the paper's CLARS the agreement `||grad|| / s`.
            Above 0, or None for no cap, as in the paper. A step then is no longer than
            `learning_rate * eta * max_agreement * ||w||`, momentum aside, which is LARS's with the trust coefficient
            `eta * max_agreement`. Networks without batch normalization need it at the default `eta`.""",
    "zero_norms": """In that step classic momentum moves on by the velocity it has, as SGD does without a gradient.
    Popular momentum stands still and keeps its velocity; rate 1 would move it by the whole learning rate times the
    velocity. (A norm close to 0 raises the rate as far as `max_rate` lets it.) A tensor whose weights are all 0 has
    rate 1, or `max_rate` if that is lower, so that zero-initialized weights start to move.""",
    "clars_source": """Source: Huo, Gu, Huang, "Large Batch Training Does Not Need Warmup", 2020, arXiv 2002.01576 (AAAI
    2021 as "Large Batch Optimization for Deep Learning Using New Complete Layer-Wise Adaptive Rate Scaling"). The
    printed method has neither a cap nor a choice of momentum; both are in the authors' code.""",
    "lars_source": """Source: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv
    1708.03888, algorithm 1; the choice of momentum is that of TensorFlow's implementations.""",
    "layerwise_arguments": """momentum: Momentum, at least 0 and below 1.
        eta: Trust coefficient, above 0. Its default, and those of the learning rate, the cap and the factor, come from
            `tf_largebatch/core/defaults.py`; the CLARS paper's code uses 0.01 for CLARS and 0.001 for LARS.
        weight_decay_rate: L2 weight decay inside the gradient, 0 or more.
        nesterov: Whether to use Nesterov momentum.
        classic_momentum: Whether the learning rate goes inside the velocity.
        epsilon: Added to the gradient norm, in its unit, 0 or more.
        max_rate: Cap on the rate of adapted tensors, above 0, or None for no cap, as the papers print the methods. The
            CLARS paper's code uses 0.1.
        unadapted_rate_factor: Rate of tensors without layer adaptation, 0 or more; 1, as in the papers, is the plain
            learning rate.""",
    "clipping_arguments": """clipnorm: Clips each gradient to this norm, before decay.
        clipvalue: Clips each gradient's entries to this magnitude, before decay.
        global_clipnorm: Clips all gradients together to this norm, before decay.""",
    "keras_arguments": """exclude_from_layer_adaptation: Tensors that keep the plain learning rate: one, or a list, of
            patterns (`re.search` on the variable's path), variables, and predicates of a variable. By default tensors
            of fewer than two dimensions (biases, normalization); `[]` for none. A pattern should not name the model
            itself: Keras leaves that out of the paths of a model it loads.
        exclude_from_weight_decay: Tensors without weight decay, given in the same way, with the same default.
        jit_compile: Whether XLA compiles the update of all tensors into one program. For GPUs under
            `MirroredStrategy`, where Keras cannot compile the whole step. A step that is compiled anyway gains
            nothing, and neither does a CPU, whose own kernels are faster. On JAX it changes nothing.
        {{clipping_arguments}}
        use_ema: Whether to keep an exponential moving average of the weights.
        ema_momentum: Momentum of that average.
        ema_overwrite_frequency: Steps after which the average overwrites the weights.
        loss_scale_factor: Fixed loss scale; gradients are divided by it.
        gradient_accumulation_steps: Micro-batches in an update, 2 or more. Learning-rate schedules count
            micro-batches.""",
    "tf_keras_arguments": """exclude_from_layer_adaptation: Tensors that keep the plain learning rate: one, or a list,
            of patterns (`re.search` on the variable's name without its ":0", such as "conv2d_1/kernel"), variables,
            and predicates of a variable. By default tensors of fewer than two dimensions (biases, normalization);
            `[]` for none.
        exclude_from_weight_decay: Tensors without weight decay, given in the same way, with the same default.
        {{clipping_arguments}}
        gradient_aggregator: Replaces the sum over replicas; takes and returns pairs of a gradient and a variable, of
            which one pair holds CLARS's norms.
        gradient_transformers: Applied to the summed pairs in place of clipping. Neither function is part of the
            configuration.""",
}

Class = TypeVar("Class", bound=type)


def with_shared_texts(cls: Class) -> Class:
    """Puts `TEXTS` in place of their names in the class's docstring, as Keras does for its optimizers."""
    for _ in range(2):  # a text may name another one
        for name, text in TEXTS.items():
            if cls.__doc__:  # Python drops docstrings with -OO
                cls.__doc__ = cls.__doc__.replace("{{" + name + "}}", text)
    return cls


def hyperparameter(name: str, value: Any, within: Callable[[float], bool], rule: str, remedy: str = "") -> Any:
    """Returns a number as a float; a scalar that JAX traces, whose value is not known yet, as it is.

    A compiled step can thus take hyper-parameters as inputs, and `jax.vmap` train with several values at a time.

    Args:
        name: Name of the argument.
        value: What was received.
        within: Whether a number is in the argument's range.
        rule: The range in words, to follow "must be".
        remedy: As in `check.message`.

    Raises:
        ValueError: If the value is neither, or a number outside the range.
    """
    if keras.backend.backend() == "jax" and ops.is_tensor(value) and not ops.shape(value):
        try:
            value = float(value)
        except TypeError:
            return value
    return check.number(name, value, within, rule, remedy)


def optional_number(name: str, value: Any) -> Any:
    """Returns None as it is, and a number above 0 as `hyperparameter` does.

    Raises:
        ValueError: If the value is neither.
    """
    rule = "a number above 0, or None"
    return None if value is None else hyperparameter(name, value, lambda v: 0 < v < math.inf, rule)


def optional_count(name: str, value: Any, least: int) -> int | None:
    """Returns None, or a whole number of `least` or more as an int.

    Raises:
        ValueError: If the value is neither.
    """
    found = check.plain(value)
    is_count = isinstance(found, int) and not isinstance(found, bool) and found >= least
    check.require(found is None or is_count, name, found, f"a whole number of {least} or more, or None")
    return found


def may_differ(value: Any, number: float) -> bool:
    """Returns whether a hyper-parameter may differ from a number in the step that is being traced: a traced one may."""
    return ops.is_tensor(value) or value != number


def saved(name: str, value: Any) -> Any:
    """Returns a hyper-parameter for the configuration.

    Raises:
        ValueError: If it is traced: a configuration holds numbers.
    """
    check.require(not ops.is_tensor(value), name, value, "a number to be saved", "assign one to the optimizer")
    return value


class LayerwiseArguments:
    """Mixed into an optimizer: the arguments that both Keras worlds have, checked, kept, and read for `get_config`."""

    def _set_arguments(
        self,
        *,
        momentum: float,
        eta: float,
        weight_decay_rate: float,
        nesterov: bool,
        classic_momentum: bool,
        epsilon: float,
        max_rate: float | None,
        unadapted_rate_factor: float,
        exclude_from_layer_adaptation: Any,
        exclude_from_weight_decay: Any,
    ) -> None:
        self.momentum = hyperparameter(
            "momentum", momentum, lambda v: 0 <= v < 1, "at least 0 and below 1", "0.9 is usual"
        )
        self.eta = hyperparameter("eta", eta, lambda v: 0 < v < math.inf, "a number above 0", "0.001 to 0.1 is usual")
        self.weight_decay_rate = hyperparameter(
            "weight_decay_rate", weight_decay_rate, lambda v: 0 <= v < math.inf, "a number of 0 or more"
        )
        self.epsilon = hyperparameter(
            "epsilon", epsilon, lambda v: 0 <= v < math.inf, "a number of 0 or more", "1e-6 is usual"
        )
        self.max_rate = max_rate
        if max_rate is not None:
            rule = "a number above 0, or None for no cap"
            self.max_rate = hyperparameter("max_rate", max_rate, lambda v: v > 0, rule)
        self.unadapted_rate_factor = hyperparameter(
            "unadapted_rate_factor",
            unadapted_rate_factor,
            lambda v: 0 <= v < math.inf,
            "a number of 0 or more",
            "1 is the plain learning rate",
        )
        self.nesterov = check.flag("nesterov", nesterov)
        self.classic_momentum = check.flag("classic_momentum", classic_momentum)
        possible = not self.nesterov or may_differ(self.momentum, 0)
        check.require(possible, "momentum", self.momentum, "above 0 with nesterov=True", "pass 0.9, for example")
        self._adaptation_exclusion = Exclusion("exclude_from_layer_adaptation", exclude_from_layer_adaptation)
        self._decay_exclusion = Exclusion("exclude_from_weight_decay", exclude_from_weight_decay)

    def _arguments(self) -> dict[str, Any]:
        """Returns the arguments of `_set_arguments` as JSON types."""
        return {
            "momentum": saved("momentum", self.momentum),
            "eta": saved("eta", self.eta),
            "weight_decay_rate": saved("weight_decay_rate", self.weight_decay_rate),
            "nesterov": self.nesterov,
            "classic_momentum": self.classic_momentum,
            "epsilon": saved("epsilon", self.epsilon),
            "max_rate": saved("max_rate", self.max_rate),
            "unadapted_rate_factor": saved("unadapted_rate_factor", self.unadapted_rate_factor),
            "exclude_from_layer_adaptation": self._adaptation_exclusion.to_config(),
            "exclude_from_weight_decay": self._decay_exclusion.to_config(),
        }

    def _select(self, variables: Sequence[Any]) -> None:
        """Decides which of the variables are adapted and which are decayed."""
        self._adapted = tuple(not excluded for excluded in self._adaptation_exclusion.select(variables))
        self._decayed = tuple(not excluded for excluded in self._decay_exclusion.select(variables))


def checked_learning_rate(learning_rate: Any) -> Any:
    """Returns a number as a float; a schedule or a function as it is; what JAX traces as a function that returns it.

    Raises:
        ValueError: If a number is negative, or NaN, or the value is neither a number nor a schedule nor a function.
    """
    learning_rate = check.plain(learning_rate)
    if isinstance(learning_rate, numbers.Real):
        return check.number("learning_rate", learning_rate, lambda v: 0 <= v < math.inf, "a number of 0 or more")
    if keras.backend.backend() == "jax" and ops.is_tensor(learning_rate):
        return lambda: learning_rate
    # Keras's own variables and tensors have a dtype.
    known = callable(learning_rate) or hasattr(learning_rate, "dtype")
    check.require(known, "learning_rate", learning_rate, "a number of 0 or more, a schedule or a function")
    return learning_rate
