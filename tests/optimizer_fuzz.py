"""CLARS and LARS with settings drawn at random: a NumPy reference, and the optimizers of both Keras worlds.

A setting follows from its number alone, so that it can be repeated in another process:

    KERAS_BACKEND=jax python tests/optimizer_fuzz.py FILE FIRST LAST STEPS

writes to FILE (.npz) what every tensor is after every step of the settings FIRST to LAST - 1.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from layerwise_cases import compiled
from reference import Reference

import tf_largebatch as lb
from tf_largebatch.core.schedules import WarmupPolynomialDecay

Found = dict[str, np.ndarray]
EXCLUSIONS = {"default": None, "nothing": [], "kernels": "kernel$", "one layer": "^layer_1/", "two": ["bias$", "_2/"]}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one run of an optimizer is made of; `number` draws the gradients, too."""

    number: int
    optimizer: str
    shapes: Mapping[str, tuple[int, ...]]
    arguments: Mapping[str, Any]
    schedule: str
    not_adapted: str
    not_decayed: str
    clipping: Mapping[str, float]
    average: Mapping[str, Any]
    accumulated: int
    static_scale: float | None
    dynamic_scale: tuple[float, int] | None

    @property
    def of_tf_keras(self) -> Setting:
        """The same without what tf_keras's optimizers do not have."""
        schedule = self.schedule.removeprefix("warmup and ")
        return dataclasses.replace(
            self, schedule=schedule, average={}, accumulated=1, static_scale=None, dynamic_scale=None
        )


def setting(number: int) -> Setting:
    """Draws a setting."""
    rng = np.random.default_rng([16, number])

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    def log_uniform(low: float, high: float) -> float:
        return float(np.float32(math.exp(rng.uniform(math.log(low), math.log(high)))))

    shapes = {}
    for layer in range(rng.integers(2, 4)):
        rank = int(rng.integers(1, 4))
        shapes[f"layer_{layer}/kernel"] = tuple(int(n) for n in rng.integers(1, 7, rank + 1))
        shapes[f"layer_{layer}/bias"] = (int(rng.integers(1, 7)),)
    name = one_of("CLARS", "LARS")
    momentum = one_of(0.0, 0.9, log_uniform(0.3, 0.97))
    arguments = {
        "momentum": momentum,
        "eta": log_uniform(1e-3, 0.3),
        "weight_decay_rate": one_of(0.0, log_uniform(1e-5, 0.1)),
        "nesterov": bool(momentum) and one_of(True, False),
        "classic_momentum": one_of(True, False),
        "epsilon": one_of(0.0, 1e-6, log_uniform(1e-4, 1.0)),
        "max_rate": one_of(None, log_uniform(1e-3, 2.0)),
        "unadapted_rate_factor": one_of(0.0, 1.0, log_uniform(1e-2, 2.0)),
    }
    if name == "CLARS":
        arguments["norm_exponent"] = one_of(0.0, 1.0, round(float(rng.uniform(0.1, 0.9)), 3))
        # Drawn apart, so that the other draws of a setting stay what they were before there was this argument.
        apart = np.random.default_rng([17, number])
        arguments["max_agreement"] = None if apart.random() < 0.5 else float(np.float32(apart.uniform(0.02, 1.0)))
    has_second_layer = "layer_2/bias" in shapes
    exclusions = [key for key in EXCLUSIONS if key != "two" or has_second_layer]
    average = {}
    if rng.random() < 0.4:
        average = {"use_ema": True, "ema_momentum": log_uniform(0.5, 0.99)}
        average["ema_overwrite_frequency"] = one_of(None, int(rng.integers(2, 9)))
    static, dynamic = one_of((None, None), (None, None), (64.0, None), (None, (128.0, int(rng.integers(2, 12)))))
    clipping = one_of({}, {"clipnorm": 1.0}, {"clipvalue": 1.0}, {"global_clipnorm": 1.0})
    return Setting(
        number=number,
        optimizer=name,
        shapes=shapes,
        arguments=arguments,
        schedule=one_of("constant", "warmup and decay", "exponential", "cosine"),
        not_adapted=one_of(*exclusions),
        not_decayed=one_of(*exclusions),
        clipping={key: log_uniform(0.05, 5.0) for key in clipping},
        average=average,
        accumulated=one_of(1, 1, 2, int(rng.integers(3, 6))),
        static_scale=static,
        dynamic_scale=dynamic,
    )


def excluded(key: str, path: str, shape: tuple[int, ...]) -> bool:
    """Whether an exclusion means this tensor."""
    patterns = EXCLUSIONS[key]
    if patterns is None:
        return len(shape) < 2
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(re.search(pattern, path) for pattern in patterns)


def learning_rates(of: Setting, steps: int) -> tuple[Callable[[Any], Any], Callable[[int], float]]:
    """The schedule as a function of a Keras world, and in NumPy.

    Args:
        of: The setting.
        steps: Steps of the run.
    """
    rng = np.random.default_rng([17, of.number])
    # Tensors change by a small share in each step: with momentum by up to 1 / (1 - momentum) of it.
    share = (1 - of.arguments["momentum"]) * float(rng.uniform(0.005, 0.05))
    rate = of.arguments["max_rate"] or of.arguments["eta"] / 0.5
    peak = float(np.float32(share / max(min(rate, of.arguments["eta"] / 0.5), of.arguments["unadapted_rate_factor"])))
    if of.schedule == "constant":
        return (lambda world: peak), (lambda step: peak)
    if of.schedule in ("decay", "warmup and decay"):
        warmup = int(rng.integers(1, steps // 2)) if of.schedule == "warmup and decay" else 0
        power = float(rng.choice([0.5, 1.0, 2.0]))

        def make(world: Any) -> Any:
            if world is keras:
                return WarmupPolynomialDecay(peak, steps, warmup, power=power, end_learning_rate=0.0)
            return world.optimizers.schedules.PolynomialDecay(peak, steps, 0.0, power)

        def decayed(step: int) -> float:
            if step < warmup:
                return peak * step / warmup
            return peak * (1 - min((step - warmup) / (steps - warmup), 1.0)) ** power

        return make, decayed
    if of.schedule == "exponential":
        return (
            lambda world: world.optimizers.schedules.ExponentialDecay(peak, 10, 0.75),
            lambda step: peak * 0.75 ** (step / 10),
        )
    return (
        lambda world: world.optimizers.schedules.CosineDecay(peak, steps, 0.125),
        lambda step: peak * (0.875 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))) + 0.125),
    )


@dataclasses.dataclass(frozen=True)
class Step:
    """What goes into one call of an optimizer, float32; the gradients are those of the unscaled loss."""

    gradients: Mapping[str, np.ndarray]
    norms: Mapping[str, np.float32]
    overflows: bool


def start(of: Setting) -> dict[str, np.ndarray]:
    """The weights at the start; sometimes a tensor is zero."""
    rng = np.random.default_rng([18, of.number])
    zero = rng.integers(4 * len(of.shapes))
    return {
        path: (rng.normal(size=shape) * (i != zero)).astype("float32")
        for i, (path, shape) in enumerate(of.shapes.items())
    }


def all_steps(of: Setting, steps: int) -> list[Step]:
    """The gradients and norms of a run; now and then a tensor has no gradient, or a scaled loss is too large."""
    rng = np.random.default_rng([19, of.number])
    found = []
    for _ in range(steps):
        gradients, norms = {}, {}
        for path, shape in of.shapes.items():
            scale = 0.0 if rng.random() < 0.02 else math.exp(rng.normal())
            gradients[path] = (scale * rng.normal(size=shape)).astype("float32")
            norms[path] = np.float32(0.0 if scale == 0 and rng.random() < 0.5 else math.exp(0.5 * rng.normal()) + scale)
        found.append(Step(gradients, norms, of.dynamic_scale is not None and rng.random() < 0.1))
    return found


def clipped(of: Setting, gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gradients after clipping."""
    for kind, size in of.clipping.items():
        if kind == "clipvalue":
            return {path: np.clip(g, -size, size) for path, g in gradients.items()}
        if kind == "clipnorm":
            return {path: g * size / max(np.linalg.norm(g), size) for path, g in gradients.items()}
        norm = math.sqrt(sum(np.sum(g**2) for g in gradients.values()))
        return {path: g * size / max(norm, size) for path, g in gradients.items()}
    return gradients


def reference_run(of: Setting, steps: int) -> Found:
    """What every tensor is after every step, from the equations in NumPy float64; [steps, ...] each."""
    rate_of = learning_rates(of, steps)[1]
    names = {"momentum": "beta", "weight_decay_rate": "decay", "classic_momentum": "classic"}
    names |= {"unadapted_rate_factor": "unadapted", "norm_exponent": "exponent"}
    arguments = {names.get(key, key): value for key, value in of.arguments.items()}
    tensors = {
        path: Reference(
            w,
            lr=0.0,
            **arguments,
            adapted=not excluded(of.not_adapted, path, of.shapes[path]),
            decayed=not excluded(of.not_decayed, path, of.shapes[path]),
        )
        for path, w in start(of).items()
    }
    averages = {path: np.zeros_like(one.w) for path, one in tensors.items()}
    held: list[Step] = []
    calls, scale, good = 0, *(of.dynamic_scale or (1.0, 0))[:1], 0
    history: list[dict[str, np.ndarray]] = []
    for step in all_steps(of, steps):
        if step.overflows:
            scale, good = scale / 2, 0
        else:
            held.append(step)
            if len(held) == of.accumulated:
                _update(of, tensors, held, rate_of(calls))
                held = []
            if of.average:
                _average(of, tensors, averages, calls // of.accumulated)
            calls += 1
            if of.dynamic_scale is not None:
                good += 1
                if good == of.dynamic_scale[1]:
                    scale, good = scale * 2, 0
        history.append(_state(of, tensors, averages, scale))
    return {name: np.stack([one[name] for one in history]) for name in history[0]}


def _update(of: Setting, tensors: dict[str, Reference], held: list[Step], learning_rate: float) -> None:
    means = {path: np.mean([one.gradients[path] for one in held], 0, dtype="float64") for path in tensors}
    for path, gradient in clipped(of, means).items():
        tensors[path].lr = learning_rate
        norm = np.mean([one.norms[path] for one in held], dtype="float64") if of.optimizer == "CLARS" else None
        tensors[path].step(gradient, norm)


def _average(of: Setting, tensors: dict[str, Reference], averages: dict[str, np.ndarray], updates: int) -> None:
    momentum = of.average["ema_momentum"] if updates else 0.0
    frequency = of.average["ema_overwrite_frequency"]
    for path, one in tensors.items():
        averages[path] = momentum * averages[path] + (1 - momentum) * one.w
        if frequency and (updates + 1) % frequency == 0:
            one.w = averages[path].copy()


def _state(of: Setting, tensors: dict[str, Reference], averages: dict[str, np.ndarray], scale: float) -> dict[str, Any]:
    found = {}
    for path, one in tensors.items():
        found[f"weight {path}"] = np.array(one.w)
        if of.arguments["momentum"]:
            found[f"velocity {path}"] = np.abs(one.v)  # classic velocities have Keras's sign
        if of.average:
            found[f"average {path}"] = np.array(averages[path])
        found[f"rate {path}"] = np.array(np.nan if one.rate is None else one.rate)
        found[f"norm {path}"] = np.array(one.norm if one.adapted and one.norm is not None else np.nan)
    if of.dynamic_scale is not None:
        found["loss scale"] = np.array(scale)
    return found


def run(of: Setting, steps: int) -> Found:
    """The same from the optimizer of Keras 3, in a compiled step on the backend in use."""
    optimizer = getattr(lb, of.optimizer)(
        learning_rates(of, steps)[0](keras),
        **of.arguments,
        **of.clipping,
        **of.average,
        exclude_from_layer_adaptation=EXCLUSIONS[of.not_adapted],
        exclude_from_weight_decay=EXCLUSIONS[of.not_decayed],
        gradient_accumulation_steps=of.accumulated if of.accumulated > 1 else None,
        loss_scale_factor=of.static_scale,
    )
    variables = []
    for path, value in start(of).items():
        scope, name = path.split("/")
        with keras.name_scope(scope):
            variables.append(keras.Variable(value, name=name))
    outer = optimizer
    if of.dynamic_scale is not None:
        outer = keras.optimizers.LossScaleOptimizer(optimizer, of.dynamic_scale[0], of.dynamic_scale[1])
    outer.build(variables)
    step, history = compiled(outer, variables), []
    for one in all_steps(of, steps):
        scale = np.float32(of.static_scale or 1.0)
        if of.dynamic_scale is not None:
            scale = np.float32(ops.convert_to_numpy(outer.dynamic_scale))
        factor = np.float32("inf") if one.overflows else scale
        gradients = [ops.convert_to_tensor(np.where(g == 0, g, g * factor)) for g in one.gradients.values()]
        norms = {path: ops.convert_to_tensor(s * np.float32(of.static_scale or 1.0)) for path, s in one.norms.items()}
        step(gradients, norms if of.optimizer == "CLARS" else None)
        history.append(_state_of(of, optimizer, variables, outer))
    return {name: np.stack([one[name] for one in history]) for name in history[0]}


def _state_of(of: Setting, optimizer: Any, variables: list[Any], outer: Any) -> dict[str, np.ndarray]:
    packed = {name: np.asarray(getattr(optimizer, f"_packed_{name}s")) for name in ("rate", "norm")}
    found = {}
    for i, path in enumerate(of.shapes):
        found[f"weight {path}"] = np.asarray(variables[i])
        if of.arguments["momentum"]:
            found[f"velocity {path}"] = np.abs(np.asarray(optimizer._velocities[i]))
        if of.average:
            found[f"average {path}"] = np.asarray(optimizer._model_variables_moving_average[i])
        for name, values in packed.items():
            skipped = name == "norm" and excluded(of.not_adapted, path, of.shapes[path])
            found[f"{name} {path}"] = np.where(values[i] < 0, np.nan, values[i]) if not skipped else np.array(np.nan)
    if of.dynamic_scale is not None:
        found["loss scale"] = np.asarray(outer.dynamic_scale)
    return found


def run_tf_keras(of: Setting, steps: int) -> Found:
    """The same from the optimizer of tf_keras, which must be installed."""
    import tensorflow as tf
    import tf_keras

    from tf_largebatch.tf_keras import optimizers

    optimizer = getattr(optimizers, of.optimizer)(
        learning_rates(of, steps)[0](tf_keras),
        **of.arguments,
        **of.clipping,
        exclude_from_layer_adaptation=EXCLUSIONS[of.not_adapted],
        exclude_from_weight_decay=EXCLUSIONS[of.not_decayed],
    )
    variables = [tf.Variable(value, name=path) for path, value in start(of).items()]
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step(gradients: list[Any], norms: list[Any] | None) -> None:
        pairs = list(zip(gradients, variables, strict=True))
        if norms is None:
            optimizer.apply_gradients(pairs)
        else:
            with optimizer.measured_gradient_norms(norms):
                optimizer.apply_gradients(pairs)

    history = []
    for one in all_steps(of, steps):
        norms = [tf.constant(s) for s in one.norms.values()] if of.optimizer == "CLARS" else None
        step([tf.constant(g) for g in one.gradients.values()], norms)
        found = {}
        for i, path in enumerate(of.shapes):
            found[f"weight {path}"] = variables[i].numpy()
            if of.arguments["momentum"]:
                found[f"velocity {path}"] = np.abs(optimizer._velocities[i].numpy())
            for name in ("rate", "norm"):
                value = getattr(optimizer, f"_packed_{name}s").numpy()[i]
                skipped = name == "norm" and excluded(of.not_adapted, path, of.shapes[path])
                found[f"{name} {path}"] = np.array(np.nan) if skipped or value < 0 else value
        history.append(found)
    return {name: np.stack([one[name] for one in history]) for name in history[0]}


def first_difference(found: Found, expected: Found, tolerance: float) -> str | None:
    """The first step and tensor that differ by more than this share of the tensor's largest norm so far, in words."""
    assert list(found) == list(expected)
    largest = dict.fromkeys(expected, 0.0)
    for step in range(len(next(iter(expected.values())))):
        for name, values in expected.items():
            right, other = values[step].astype("float64"), found[name][step].astype("float64")
            if np.isnan(right).all() and np.isnan(other).all():
                continue
            largest[name] = max(largest[name], float(np.linalg.norm(right)))
            difference = float(np.linalg.norm(other - right))
            if not difference <= tolerance * largest[name] + 1e-30:
                return f"step {step + 1}, {name}: {difference:.1e} of {largest[name]:.1e}"
    return None


def differences(
    runs: Callable[[Setting, int], Found],
    expected: Callable[[Setting, int], Found],
    settings: list[Setting],
    steps: int,
    tolerance: float,
) -> list[str]:
    """What differs between two ways to run these settings, a line for each setting, with the setting."""
    lines = []
    for one in settings:
        difference = first_difference(runs(one, steps), expected(one, steps), tolerance)
        if difference is not None:
            lines.append(f"setting {one.number}: {difference}\n  {one}")
    return lines


@functools.cache
def _counted(numbers: range) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in map(setting, numbers):
        with_what = [one.optimizer, one.schedule, *one.clipping, *(["average"] if one.average else [])]
        with_what += ["accumulated"] if one.accumulated > 1 else []
        with_what += ["scaled loss"] if one.static_scale or one.dynamic_scale else []
        for what in with_what:
            counts[what] = counts.get(what, 0) + 1
    return counts


def counted(numbers: range) -> dict[str, int]:
    """How many of these settings have each feature."""
    return _counted(numbers)


if __name__ == "__main__":
    file, first, last, steps = sys.argv[1], *map(int, sys.argv[2:])
    tensors = {}
    for number in range(first, last):
        tensors.update((f"{number}: {name}", values) for name, values in run(setting(number), steps).items())
    np.savez(file, **tensors)
