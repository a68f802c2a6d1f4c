"""The training steps and updates that benchmarks.gpu times: Keras's own and the package's, on JAX."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras

import tf_largebatch
from benchmarks import vision_transformer
from benchmarks.gpu_timing import Compiled, memory_bytes
from tf_largebatch import models
from tf_largebatch.backend.jax.pipeline import TrainFunction
from tf_largebatch.conadv.in_flight import InFlight

State = Any
Step = Callable[..., tuple[Any, State]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of a state and of data, and what it starts from.

    Attributes:
        function: Returns a result and the new state.
        state: The first state; its memory is given away.
        data: Further arguments.
        repeats: How often the function does what is to be timed.
    """

    function: Step
    state: State
    data: tuple[Any, ...] = ()
    repeats: int = 1

    def lower(self) -> Callable[[], Compiled]:
        """Traces the function; what it returns compiles it, in any thread."""
        lowered = jax.jit(self.function, donate_argnums=0).lower(self.state, *self.data)

        def finish() -> Compiled:
            compiled = lowered.compile()
            memory = memory_bytes(compiled.memory_analysis())
            return Compiled(lambda state: compiled(state, *self.data), self.state, memory, self.repeats)

        return finish


@dataclasses.dataclass(frozen=True)
class Training:
    """A network's training step with and without norms.

    Attributes:
        network: Returns the network for `pixels` and `classes`.
        batch: Images a step.
        pixels: Of an image's side.
        classes: How many.
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
        network: Returns the network whose tensors are updated.
        repeats: Updates a program; a single one takes less time than its start.
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
        network: Returns the network for `pixels` and `classes`.
        batch: Clean images a step; as many adversarial ones join them.
        pixels: Of an image's side.
        classes: How many.
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
