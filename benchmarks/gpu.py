"""What exact and sampled per-example norms cost a Keras training step on a GPU, with Keras on JAX.

    python -m benchmarks.gpu --json=benchmarks/reports/gpu.json             # eight minutes on an H100
    python -m benchmarks.gpu --json=... --cases=resnet50,update             # some cases
    python -m benchmarks.gpu --small                                        # on a CPU, to see that it runs
    python -m benchmarks.gpu --markdown --json=...                          # the tables of a report

Cases come in order of importance, and the report is written after each; cases that it holds are not repeated, and none
begins after `--seconds`. Every step is the one that `fit` runs: `train_step` of a Keras model with SGD and momentum
(plain), and that of LargeBatchModel with CLARS and the norms of all examples (exact) or of an eighth of them (sampled).
The programs of a case take turns in one process. Memory is what the compiler reports: arguments, results and
temporary arrays. TensorFlow is not needed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras

import tf_largebatch
from benchmarks import harness, vision_transformer
from benchmarks.gpu_table import markdown
from tf_largebatch import models
from tf_largebatch.backend.jax.kernels import (
    convolution_direct,
    convolution_pallas,
    depthwise_direct,
    depthwise_pallas,
)
from tf_largebatch.backend.jax.pipeline import TrainFunction
from tf_largebatch.conadv.in_flight import InFlight
from tf_largebatch.norms.window import Window

State = Any
Step = Callable[..., tuple[Any, State]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of a state and of data, and what it starts from.

    Attributes:
        function: returns a result and the new state.
        state: the first state; its memory is given away.
        data: further arguments.
        repeats: how often the function does what is to be timed.
    """

    function: Step
    state: State
    data: tuple[Any, ...] = ()
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Training:
    """A network's training step with and without norms.

    Attributes:
        network: returns the network for `pixels` and `classes`.
        batch: images a step.
        pixels: of an image's side.
        classes: how many.
        policy: Keras's dtype policy.
    """

    network: Callable[[int, int], keras.Model]
    batch: int
    pixels: int
    classes: int = 1000
    policy: str = "mixed_bfloat16"

    baseline = "plain"

    def programs(self) -> dict[str, Program]:
        """The plain step, and the steps with the norms of all examples and of an eighth."""
        images, labels = images_and_labels(self.batch, self.pixels, self.classes)
        sampled = max(1, self.batch // 8)
        return {
            "plain": training_program(self._network(), sgd(), images, labels),
            "exact": training_program(tf_largebatch.LargeBatchModel(self._network()), clars(), images, labels),
            "sampled": training_program(
                tf_largebatch.LargeBatchModel(self._network(), norm_examples=sampled), clars(), images, labels
            ),
        }

    def _network(self) -> keras.Model:
        keras.config.set_dtype_policy(self.policy)
        try:
            return self.network(self.pixels, self.classes)
        finally:
            keras.config.set_dtype_policy("float32")


@dataclasses.dataclass(frozen=True)
class Update:
    """The update alone, without the gradients: of 25.6 million parameters in ResNet-50's tensors, or of a few.

    Attributes:
        network: returns the network whose tensors are updated.
        repeats: updates a program; a single one takes less time than its start.
    """

    network: Callable[[], keras.Model]
    repeats: int = 50

    baseline = "SGD"

    def programs(self) -> dict[str, Program]:
        """Keras's SGD with momentum and Lamb, and CLARS with norms that are given."""
        sizes = [tuple(v.shape) for v in self.network().trainable_variables]
        optimizers = {"SGD": sgd(), "CLARS": clars(), "Lamb": keras.optimizers.Lamb(0.01)}
        return {name: self._program(optimizer, sizes) for name, optimizer in optimizers.items()}

    def _program(self, optimizer: keras.optimizers.Optimizer, sizes: Sequence[tuple[int, ...]]) -> Program:
        keys = list(jax.random.split(jax.random.key(0), len(sizes)))
        weights = [keras.Variable(jax.random.normal(k, s), name="w") for k, s in zip(keys, sizes, strict=True)]
        gradients = [jax.random.normal(k, s) for k, s in zip(keys, sizes, strict=True)]
        optimizer.build(weights)

        def update(state: State, gradients: list[jax.Array]) -> State:
            values, slots = state
            if not hasattr(optimizer, "measured_gradient_norms"):
                return optimizer.stateless_apply(slots, gradients, values)
            with optimizer.measured_gradient_norms([jnp.float32(2.0)] * len(weights)):
                return optimizer.stateless_apply(slots, gradients, values)

        def updates(state: State, gradients: list[jax.Array]) -> tuple[jax.Array, State]:
            def body(_: Any, state: State) -> State:
                # Without the barrier the compiler would do once, before the loop, what depends on gradients alone.
                return update(*jax.lax.optimization_barrier((state, gradients)))

            state = jax.lax.fori_loop(0, self.repeats, body, state)
            return state[0][0], state

        state = ([v.value for v in weights], [v.value for v in optimizer.variables])
        return Program(updates, state, (gradients,), self.repeats)


@dataclasses.dataclass(frozen=True)
class Attack:
    """ConAdv's step with SGD: the attack beside the training pass, before it, and none.

    Attributes:
        network: returns the network for `pixels` and `classes`.
        batch: clean images a step; as many adversarial ones join them.
        pixels: of an image's side.
        classes: how many.
    """

    network: Callable[[int, int], keras.Model]
    batch: int
    pixels: int
    classes: int = 10

    baseline = "plain"

    def programs(self) -> dict[str, Program]:
        """The training pass on given adversarial images, and the two with an attack."""
        return {kind: self._program(kind) for kind in ("plain", "concurrent", "sequential")}

    def _program(self, kind: str) -> Program:
        images, labels = images_and_labels(self.batch, self.pixels, self.classes)
        data = (jnp.clip(64 * images + 128, 0, 255), labels)
        keras.config.set_dtype_policy("mixed_bfloat16")
        network = self.network(self.pixels, self.classes)
        keras.config.set_dtype_policy("float32")
        model = tf_largebatch.ConAdvModel(network, staleness=0 if kind == "sequential" else 1)
        program = training_program(model, sgd(), *data)
        model.get_ready(data)
        steps = TrainFunction(model, InFlight(), ahead=kind == "concurrent")

        def plain(state: State, data: Any, settings: Any) -> tuple[Any, State]:
            def body() -> Any:
                model.use_settings(settings)
                return model.train_on_pair(data, state[1])

            logs, new = model.stateless(body, state[0])
            return logs, (new, state[1])

        def concurrent(state: State, data: Any, settings: Any) -> tuple[Any, State]:
            logs, new, adversarial = steps.step(state[0], settings, data, state[1], data)
            return logs, (new, adversarial)

        def sequential(state: State, data: Any, settings: Any) -> tuple[Any, State]:
            logs, new = steps.alone(state[0], settings, data)
            return logs, (new, state[1])

        functions = {"plain": plain, "concurrent": concurrent, "sequential": sequential}
        state = (variables_of(model), jnp.array(data[0]))
        return Program(functions[kind], state, (*program.data, model.settings()))


def sgd() -> keras.optimizers.Optimizer:
    """Keras's SGD with momentum."""
    return keras.optimizers.SGD(0.01, momentum=0.9)


def clars() -> keras.optimizers.Optimizer:
    """CLARS with measured norms."""
    return tf_largebatch.CLARS(0.01, momentum=0.9, gradient_norms="per_example")


def images_and_labels(batch: int, pixels: int, classes: int) -> tuple[jax.Array, jax.Array]:
    """Random images, float32 as a data set gives them, and labels."""
    return jax.random.normal(jax.random.key(1), (batch, pixels, pixels, 3)), jnp.arange(batch) % classes


def training_program(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, images: jax.Array, labels: jax.Array
) -> Program:
    """The step that `fit` runs, and the model's variables as its state."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    optimizer.build(model.trainable_variables)
    return Program(model.train_step, variables_of(model), ((images, labels),))


def variables_of(model: keras.Model) -> State:
    """The state of a model's step, copied: a program gives the memory of its first state away."""
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    return tuple([jnp.array(v.value) for v in group] for group in groups)


Case = Training | Update | Attack
CASES: dict[str, Case] = {
    "resnet50": Training(
        lambda pixels, classes: models.build("resnet50", (pixels, pixels, 3), classes), batch=256, pixels=224
    ),
    "resnet20": Training(
        lambda pixels, classes: models.build("resnet20", (pixels, pixels, 3), classes), 4096, 32, classes=10
    ),
    "update": Update(lambda: models.build("resnet50", (224, 224, 3), 1000)),
    "vit_s": Training(vision_transformer.vit_s, batch=256, pixels=224),
    "mobilenetv2": Training(
        lambda pixels, classes: models.build("mobilenetv2", (pixels, pixels, 3), classes), batch=256, pixels=224
    ),
    "densenet121": Training(
        lambda pixels, classes: models.build("densenet121", (pixels, pixels, 3), classes), batch=128, pixels=224
    ),
    "conadv": Attack(lambda pixels, classes: models.build("resnet20", (pixels, pixels, 3), classes), 2048, 32),
    "conadv_small": Attack(lambda pixels, classes: models.build("resnet20", (pixels, pixels, 3), classes), 128, 32),
    "resnet50_float32": Training(
        lambda pixels, classes: models.build("resnet50", (pixels, pixels, 3), classes), 256, 224, policy="float32"
    ),
}


def _small_network(pixels: int, classes: int) -> keras.Model:
    layers = keras.layers
    x = inputs = keras.Input((pixels, pixels, 3))
    for stride in (1, 2):
        x = layers.Conv2D(4, 3, strides=stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


SMALL_CASES: dict[str, Case] = {
    "resnet20": Training(_small_network, 8, 8, classes=3),
    "vit_s": Training(lambda pixels, classes: vision_transformer.build(pixels, classes, 4, 16, 1, 2), 8, 8, classes=3),
    "update": Update(lambda: _small_network(8, 3), repeats=2),
    "conadv": Attack(_small_network, 8, 8, classes=3),
}


def check_kernels() -> dict[str, float]:
    """The largest relative error of the Pallas kernels' norms and gradients against the direct forms', by layer."""
    errors = {}
    for pixels, channels, outputs, kernel, stride in ((32, 3, 16, 3, 1), (32, 16, 32, 3, 2), (14, 128, 64, 3, 1)):
        window = Window((kernel,) * 2, (stride,) * 2, "same", (1, 1))
        a = jax.random.normal(jax.random.key(2), (9, pixels, pixels, channels), jnp.bfloat16)
        d = jax.random.normal(jax.random.key(3), (9, pixels // stride, pixels // stride, outputs), jnp.bfloat16)
        forms = (convolution_pallas.norms_and_gradient, convolution_direct.norms_and_gradient)
        found, reference = (jax.jit(lambda a, d, form=form: form(a, d, window, 1))(a, d) for form in forms)  # noqa: B023
        errors[f"{channels} to {outputs}"] = _error(found, reference)
    found, reference = (
        jax.jit(lambda a, d, form=form: form.norms_and_gradient(a, d, window))(a[..., :80], a[..., :80])
        for form in (depthwise_pallas, depthwise_direct)
    )
    return {**errors, "depthwise": _error(found, reference)}


def _error(found: Sequence[jax.Array], reference: Sequence[jax.Array]) -> float:
    return max(float(abs(x - y).max() / abs(y).max()) for x, y in zip(found, reference, strict=True))


def measure(case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """Compiles a case's programs side by side, times them in turns, and reads their memory."""
    programs = case.programs()
    start = time.perf_counter()
    lowered = {
        name: jax.jit(one.function, donate_argnums=0).lower(one.state, *one.data) for name, one in programs.items()
    }
    traced = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = dict(zip(lowered, pool.map(lambda one: one.compile(), lowered.values()), strict=True))
    row: dict[str, Any] = {"trace_seconds": traced - start, "compile_seconds": time.perf_counter() - traced}
    memory = {name: memory_bytes(one) for name, one in compiled.items()}
    times = times_in_turns(programs, compiled, rounds, steps)
    base = case.baseline
    row |= {"baseline": base, f"{base}_ms": 1000 * statistics.median(times[base]), f"{base}_bytes": memory[base]}
    for name in programs:
        if name != base:
            row |= harness.median_and_quartiles(f"{name}_ratio", harness.ratios(times[name], times[base]))
            row[f"{name}_memory_ratio"] = memory[name] / memory[base]
    return row


def memory_bytes(program: Any) -> int:
    """Arguments, results and temporary arrays of a compiled program, those that share memory counted once."""
    found = program.memory_analysis()
    return (
        found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    )


def times_in_turns(
    programs: Mapping[str, Program], compiled: Mapping[str, Any], rounds: int, steps: int
) -> dict[str, list[float]]:
    """The seconds of a step in every round, by program; a first round is not kept."""
    states = {name: one.state for name, one in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, one in programs.items():
            start, state = time.perf_counter(), states[name]
            for _ in range(steps):
                result, state = compiled[name](state, *one.data)
            jax.block_until_ready((result, state))
            states[name] = state
            if number:
                times[name].append((time.perf_counter() - start) / (steps * one.repeats))
    return times


def environment() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "keras": keras.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file of the report; cases that it holds are not repeated")
    parser.add_argument("--cases", help=f"of {', '.join(CASES)}, separated by commas; default: all")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that everything runs")
    parser.add_argument("--rounds", type=int, default=11, help="rounds in which the programs take turns")
    parser.add_argument("--steps", type=int, default=4, help="steps of a program in a round")
    parser.add_argument("--seconds", type=float, default=480, help="no case begins after so many")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the report only")
    given = parser.parse_args(arguments)
    if keras.backend.backend() != "jax":
        sys.exit("benchmarks.gpu measures Keras on JAX: set KERAS_BACKEND=jax.")
    cases, start = SMALL_CASES if given.small else CASES, time.perf_counter()
    report: dict[str, Any] = harness.read_report(given.json) or {"environment": environment(), "cases": {}}
    if given.markdown:
        print(markdown(report))
        return report
    if jax.default_backend() == "gpu" and "kernel_errors" not in report:
        report["kernel_errors"] = check_kernels()
        print(f"largest errors of the Pallas kernel: {report['kernel_errors']}", flush=True)
    for name in given.cases.split(",") if given.cases else cases:
        if name in report["cases"]:
            continue
        if time.perf_counter() - start > given.seconds:
            print(f"{name}: not begun, {given.seconds:.0f} seconds are over", flush=True)
            continue
        try:
            report["cases"][name] = measure(cases[name], given.rounds, given.steps)
        except Exception as error:  # the cases behind it still run
            print(f"{name}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
            continue
        print(f"{time.perf_counter() - start:.0f} s, {name}: {report['cases'][name]}", flush=True)
        harness.write_report(given.json, report)
        jax.clear_caches()
    print(markdown(report))
    return report


if __name__ == "__main__":
    main()
