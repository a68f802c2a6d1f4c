"""What exact and sampled per-example norms cost a whole training step on an accelerator, in JAX alone.

    python -m benchmarks.jax_step --json=benchmarks/reports/jax_step.json

ResNet-20 on 32 px and ResNet-50 on 224 px with training-mode batch normalization, bfloat16 activations and float32
weights: the plain step, the step with the norms of every tensor (convolutions, scales, shifts, the last layer) for all
examples, and for an eighth of them. The norms leave the backward pass as the cotangents of dummy arguments. All
programs are timed in turns in one process; the memory is what the compiler reports.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import harness
from benchmarks.jax_forms import FORMS, cheapest, convolve, weight_gradient

Arrays = dict[str, jax.Array]
CLASSES, RATE, MOMENTUM, ETA = 10, 0.01, 0.9, 0.01


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def measured_convolution(a: jax.Array, w: jax.Array, slot: jax.Array, stride: int, examples: int) -> jax.Array:
    """A convolution whose backward pass gives, as the gradient of `slot` [B], `||G_i||^2` of the first examples."""
    del slot, examples
    return convolve(a, w, stride)


def _forward(a: jax.Array, w: jax.Array, slot: jax.Array, stride: int, examples: int) -> Any:
    return measured_convolution(a, w, slot, stride, examples), (a, w)


def _backward(stride: int, examples: int, saved: Any, d: jax.Array) -> Any:
    a, w = saved
    (d_a,) = jax.vjp(lambda a: convolve(a, w, stride), a)[1](d)
    form = FORMS[cheapest(a, d, w.shape[0], stride)]
    squares, gradient = form(a[:examples], d[:examples], w.shape[0], stride)
    if examples < a.shape[0]:
        gradient = weight_gradient(a, d, w.shape[0], stride).astype(jnp.float32)
        squares = jnp.pad(squares, (0, a.shape[0] - examples))
    return d_a, gradient, squares


measured_convolution.defvjp(_forward, _backward)


class Network:
    """A residual network as a function of its parameters; a first pass without any creates them.

    Args:
        blocks: For each block the filters of its convolutions as (filters, kernel, stride), and whether the shortcut
            is a convolution.
        stem: Filters, kernel, stride of the first convolution.
        pooled: Whether a 3 x 3 max pooling follows it.
        dtype: Of the activations.
    """

    def __init__(self, blocks: Any, stem: tuple[int, int, int], pooled: bool, dtype: Any) -> None:
        self._blocks, self._stem, self._pooled, self._dtype = blocks, stem, pooled, dtype

    def parameters(self, pixels: int) -> Arrays:
        """Random parameters."""
        found: dict[str, tuple[int, ...]] = {}

        def note(name: str, *shape: int) -> jax.Array:
            found[name] = shape
            return jnp.zeros(shape)

        jax.eval_shape(lambda: self._run(jnp.zeros((1, pixels, pixels, 3)), note, None, 0))
        key = jax.random.key(0)
        made = {}
        for number, (name, shape) in enumerate(found.items()):
            if len(shape) == 1:
                made[name] = jnp.ones(shape) if name.endswith("scale") else jnp.zeros(shape)
            else:
                fan_in = functools.reduce(lambda p, q: p * q, shape[:-1])
                made[name] = jax.random.normal(jax.random.fold_in(key, number), shape) * (2 / fan_in) ** 0.5
        return made

    def __call__(self, w: Mapping[str, jax.Array], images: jax.Array, slots: Arrays | None, examples: int) -> Any:
        """Scores [B, classes] and the features of the last layer; with slots the norms are measured."""
        return self._run(images, lambda name, *shape: w[name], slots, examples)

    def _run(self, images: jax.Array, weight: Callable[..., jax.Array], slots: Arrays | None, examples: int) -> Any:
        def layer(name: str, x: jax.Array, filters: int, kernel: int, stride: int) -> jax.Array:
            w = weight(name, kernel, kernel, x.shape[-1], filters)
            x = convolve(x, w, stride) if slots is None else measured_convolution(x, w, slots[name], stride, examples)
            x = x.astype(jnp.float32)
            mean = x.mean((0, 1, 2))
            z = (x - mean) * lax.rsqrt(jnp.square(x).mean((0, 1, 2)) - mean**2 + 1e-5)
            scale, shift = weight(f"{name}/scale", filters), weight(f"{name}/shift", filters)
            if slots is not None:  # a copy for each example, whose gradient is G_i
                scale, shift = (
                    (lax.stop_gradient(value) + slots[f"{name}/{part}"])[:, None, None]
                    for part, value in (("scale", scale), ("shift", shift))
                )
            return (z * scale + shift).astype(self._dtype)

        x = jax.nn.relu(layer("stem", images.astype(self._dtype), *self._stem))
        if self._pooled:
            x = lax.reduce_window(x, -np.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for number, (convolutions, shortcut) in enumerate(self._blocks):
            y, stride = x, 1
            for position, (filters, kernel, step) in enumerate(convolutions):
                y = layer(f"block{number}/{position}", y, filters, kernel, step)
                y = jax.nn.relu(y) if position + 1 < len(convolutions) else y
                stride *= step
            x = jax.nn.relu(y + (layer(f"block{number}/shortcut", x, filters, 1, stride) if shortcut else x))
        features = x.astype(jnp.float32).mean((1, 2))
        return features @ weight("head", features.shape[-1], CLASSES), features


def resnet20(dtype: Any) -> Network:
    """ResNet-20 for 32 px with convolutional shortcuts."""
    blocks = [
        ([(filters, 3, 2 if first and filters > 16 else 1), (filters, 3, 1)], first and filters > 16)
        for filters in (16, 32, 64)
        for first in (True, False, False)
    ]
    return Network(blocks, (16, 3, 1), False, dtype)


def resnet50(dtype: Any) -> Network:
    """ResNet-50, strides in the 3 x 3 convolutions."""
    blocks = [
        ([(filters, 1, 1), (filters, 3, 2 if number == 0 and filters > 64 else 1), (4 * filters, 1, 1)], number == 0)
        for filters, count in ((64, 3), (128, 4), (256, 6), (512, 3))
        for number in range(count)
    ]
    return Network(blocks, (64, 7, 2), True, dtype)


def plain_step(network: Network) -> Callable[..., tuple[Arrays, Arrays]]:
    """SGD with momentum."""

    def step(w: Arrays, v: Arrays, images: jax.Array, labels: jax.Array) -> tuple[Arrays, Arrays]:
        gradients = jax.grad(lambda w: _loss(network(w, images, None, 0)[0], labels))(w)
        v = {name: MOMENTUM * v[name] + gradients[name] for name in w}
        return {name: w[name] - RATE * v[name] for name in w}, v

    return step


def measured_step(network: Network, batch: int, examples: int) -> Callable[..., tuple[Arrays, Arrays]]:
    """CLARS with the norms of the first `examples` examples of a batch."""

    def step(w: Arrays, v: Arrays, images: jax.Array, labels: jax.Array) -> tuple[Arrays, Arrays]:
        slots = {name: jnp.zeros((batch, *(value.shape if value.ndim == 1 else ()))) for name, value in w.items()}

        def loss(w: Arrays, slots: Arrays) -> Any:
            scores, features = network(w, images, slots, examples)
            return _loss(scores, labels), (scores, features)

        (gradients, found), (scores, features) = jax.grad(loss, (0, 1), has_aux=True)(w, slots)
        d = (jax.nn.softmax(scores) - jax.nn.one_hot(labels, CLASSES)) / batch
        found["head"] = jnp.square(d).sum(1) * jnp.square(features).sum(1)
        v, updated = dict(v), {}
        for name, value in w.items():
            if value.ndim == 1:  # the gradient of the copies is G_i
                gradients[name], found[name] = found[name].sum(0), jnp.square(found[name]).sum(1)
            norm = batch / examples * jnp.sqrt(found[name][:examples]).sum()
            rate = ETA * jnp.linalg.norm(value) / (norm + 1e-6) if value.ndim > 1 else RATE
            v[name] = MOMENTUM * v[name] + jnp.where(norm > 0, rate, 0.0) * gradients[name]
            updated[name] = value - v[name]
        return updated, v

    return step


def _loss(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1).mean()


CASES = {
    "ResNet-20, 32 px, batch 4096": (resnet20, 4096, 32),
    "ResNet-50, 224 px, batch 256": (resnet50, 256, 224),
    "ResNet-20, 32 px, batch 16384": (resnet20, 16384, 32),
}


def measure_case(make: Callable[[Any], Network], batch: int, pixels: int, rounds: int, dtype: Any) -> dict[str, Any]:
    """Compiles the three steps, times them in turns, and reads their memory."""
    network, key = make(dtype), jax.random.key(1)
    w = network.parameters(pixels)
    v = {name: jnp.zeros_like(value) for name, value in w.items()}
    images, labels = jax.random.normal(key, (batch, pixels, pixels, 3)), jnp.arange(batch) % CLASSES
    steps = {
        "plain": plain_step(network),
        "exact": measured_step(network, batch, batch),
        "eighth": measured_step(network, batch, batch // 8),
    }
    programs = {name: jax.jit(step).lower(w, v, images, labels).compile() for name, step in steps.items()}
    memory = {}
    for name, program in programs.items():
        analysis = program.memory_analysis()
        memory[name] = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, program in programs.items():
            start, state = time.perf_counter(), (w, v)
            for _ in range(3):
                state = program(*state, images, labels)
            jax.block_until_ready(state)
            if number:
                times[name].append((time.perf_counter() - start) / 3)
    row: dict[str, Any] = {"plain_ms": 1000 * statistics.median(times["plain"])}
    for name in ("exact", "eighth"):
        row |= harness.median_and_quartiles(f"{name}_ratio", harness.ratios(times[name], times["plain"]))
        row[f"{name}_memory_ratio"] = memory[name] / memory["plain"]
    return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file of the report; cases that it holds are not repeated")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of three steps each")
    given = parser.parse_args()
    device = jax.devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    report = {"device": device.device_kind, "jax": jax.__version__, "dtype": jnp.dtype(dtype).name}
    report |= {name: row for name, row in harness.read_report(given.json).items() if name in CASES}
    for name, case in CASES.items():
        if name in report:
            continue
        report[name] = measure_case(*case, given.rounds, dtype)
        print(name, report[name], flush=True)
        harness.write_report(given.json, report)


if __name__ == "__main__":
    main()
