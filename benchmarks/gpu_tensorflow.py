"""What exact and sampled per-example norms cost TensorFlow's training step on a GPU, on a machine without TensorFlow.

    python -m benchmarks.gpu_tensorflow --write=modules                     # with TensorFlow; no GPU is needed
    python -m benchmarks.gpu_tensorflow --run=modules --json=benchmarks/reports/gpu.json    # on the GPU; JAX alone
    python -m benchmarks.gpu_tensorflow --write=modules --small             # tiny networks, to see that it runs

TensorFlow lowers a traced step to StableHLO, which JAX's runtime compiles and runs: the compiler is the one that
`jit_compile=True` calls. A module is a file of at most a few hundred kilobytes, since variables are its arguments. They
get random values here, as do images. The cases, and the columns of the report, are those of benchmarks.gpu.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import harness

_SUFFIX = ".stablehlo"
# Case: network, batch, pixels, classes. `None` for the update alone.
CASES: dict[str, tuple[str, int, int, int] | None] = {
    "tensorflow_resnet50": ("resnet50", 256, 224, 1000),
    "tensorflow_resnet20": ("resnet20", 4096, 32, 10),
    "tensorflow_update": None,
}
SMALL_CASES: dict[str, tuple[str, int, int, int] | None] = {
    "tensorflow_resnet20": ("small", 8, 8, 3),
    "tensorflow_update": None,
}
_ALIAS = re.compile(r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>")
_UPDATES = 50  # a program; a single one takes less time than its start


def write(directory: str, cases: Mapping[str, tuple[str, int, int, int] | None]) -> None:
    """Writes a module for each program of the cases, traced for a GPU."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from benchmarks import tpu_compiler
    from tf_largebatch.norms.device import compiling_for

    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with compiling_for("gpu"):
        for case, what in cases.items():
            programs = _updates(small="tensorflow_resnet50" not in cases) if what is None else _steps(*what)
            for program, (step, arguments) in programs.items():
                module = tpu_compiler.portable(tpu_compiler.lower(step, arguments))
                (folder / f"{case}.{program}{_SUFFIX}").write_bytes(module)
                print(f"{case}, {program}: {len(module)} bytes", flush=True)


def _network(name: str, pixels: int, classes: int) -> Any:
    import keras

    from tf_largebatch import models

    if name != "small":
        return models.build(name, (pixels, pixels, 3), classes)
    layers = keras.layers
    x = inputs = keras.Input((pixels, pixels, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2, padding="same")(x)))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def _steps(name: str, batch: int, pixels: int, classes: int) -> dict[str, tuple[Any, list[Any]]]:
    """The plain step, and those with the norms of all examples and of an eighth, and what they are called with."""
    import keras
    import tensorflow as tf

    import tf_largebatch

    arguments = [tf.TensorSpec((batch, pixels, pixels, 3)), tf.TensorSpec((batch,), tf.int32)]

    def traced(norms: bool, examples: int | None = None) -> tuple[Any, list[Any]]:
        keras.config.set_dtype_policy("mixed_bfloat16")
        network = _network(name, pixels, classes)
        keras.config.set_dtype_policy("float32")
        model = tf_largebatch.LargeBatchModel(network, norm_examples=examples) if norms else network
        optimizer = _clars() if norms else keras.optimizers.SGD(0.01, momentum=0.9)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer, loss=loss, jit_compile=True)
        optimizer.build(model.trainable_variables)
        step = tf.function(lambda x, y: model.train_step((x, y))["loss"], jit_compile=True, autograph=False)
        return step, arguments

    return {"plain": traced(False), "exact": traced(True), "sampled": traced(True, max(1, batch // 8))}


def _updates(small: bool) -> dict[str, tuple[Any, list[Any]]]:
    """The update of ResNet-50's tensors by Keras's SGD with momentum and Lamb, and by CLARS with given norms."""
    import keras
    import tensorflow as tf

    network = _network("small", 8, 3) if small else _network("resnet50", 224, 1000)
    sizes = [tuple(v.shape) for v in network.trainable_variables]

    def traced(optimizer: Any) -> tuple[Any, list[Any]]:
        weights = [keras.Variable(keras.random.normal(size), name="w") for size in sizes]
        optimizer.build(weights)

        def update(gradients: Sequence[Any]) -> None:
            if not hasattr(optimizer, "measured_gradient_norms"):
                optimizer.apply(gradients, weights)
                return
            with optimizer.measured_gradient_norms([tf.constant(2.0)] * len(weights)):
                optimizer.apply(gradients, weights)

        def updates(*gradients: Any) -> Any:
            def body(number: Any) -> Any:
                update([tf.identity(gradient) for gradient in gradients])  # of the loop's own graph
                return number + 1

            return tf.while_loop(lambda number: number < _UPDATES, body, [tf.constant(0)], parallel_iterations=1)

        specs = [tf.TensorSpec(size) for size in sizes]
        return tf.function(updates, jit_compile=True, autograph=False), specs

    optimizers = {"SGD": keras.optimizers.SGD(0.01, momentum=0.9), "CLARS": _clars()}
    return {name: traced(one) for name, one in (optimizers | {"Lamb": keras.optimizers.Lamb(0.01)}).items()}


def _clars() -> Any:
    import tf_largebatch

    return tf_largebatch.CLARS(0.01, momentum=0.9, gradient_norms="per_example")


def compile_module(module: bytes, repeats: int) -> Any:
    """Compiles a module for this process's first device.

    Returns:
        A `gpu_timing.Compiled` whose state is the arguments: variables, whose memory each call uses for their new
        values, and data, which stay.
    """
    import jax
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo
    from jax.interpreters import mlir
    from jaxlib import xla_client

    from benchmarks.gpu_timing import Compiled, memory_bytes

    device = jax.devices()[0]
    with mlir.make_ir_context() as context, ir.Location.unknown(context):
        parsed = stablehlo.deserialize_portable_artifact(context, module)
        main = next(one for one in parsed.body.operations if one.operation.attributes["sym_name"].value == "main")
        types = [str(one) for one in ir.FunctionType(main.operation.attributes["function_type"].value).inputs]
        # Which result is a variable's new value, by the argument.
        has_aliases = "mhlo.input_output_alias" in parsed.operation.attributes
        aliases = str(parsed.operation.attributes["mhlo.input_output_alias"]) if has_aliases else ""
        result_of = {int(n): int(result) for n, result in _ALIAS.findall(aliases)}
        devices = xla_client.DeviceList((device,))
        program = device.client.compile_and_load(parsed, devices, xla_client.CompileOptions())

    def call(state: list[Any]) -> tuple[Any, list[Any]]:
        results = program.execute_sharded(state).disassemble_into_single_device_arrays()
        new = [results[result_of[n]][0] if n in result_of else one for n, one in enumerate(state)]
        return [shards[0] for n, shards in enumerate(results) if n not in set(result_of.values())], new

    state = [_argument(number, one) for number, one in enumerate(types)]
    return Compiled(call, state, memory_bytes(program.get_compiled_memory_stats()), repeats)


def _argument(number: int, tensor_type: str) -> Any:
    """An array for a type such as `tensor<3x3x64x64xf32>`: normal entries over the root of a kernel's inputs, or ones.

    Scalars, as the learning rate, are 0.01, integers 0.
    """
    import jax
    import jax.numpy as jnp

    *sizes, dtype = tensor_type.removeprefix("tensor<").removesuffix(">").split("x")
    shape = tuple(int(size) for size in sizes)
    if not dtype.startswith(("f", "bf")):
        return jnp.zeros(shape, {"i1": "bool", "ui32": "uint32"}.get(dtype, dtype.replace("i", "int")))
    kind = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16, "f64": jnp.float64}[dtype]
    if not shape:
        return jnp.asarray(0.01, kind)
    if len(shape) == 1:
        return jnp.ones(shape, kind)
    entries = jax.random.normal(jax.random.key(number), shape, jnp.float32)
    return (entries / math.sqrt(math.prod(shape[:-1]))).astype(kind)


def measure(directory: str, case: str, rounds: int, steps: int) -> dict[str, Any]:
    """Compiles a case's modules side by side and times them in turns; returns the row of the report."""
    from benchmarks.gpu_timing import figures

    update = case == "tensorflow_update"
    paths = sorted(pathlib.Path(directory).glob(f"{case}.*{_SUFFIX}"))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = list(pool.map(lambda path: compile_module(path.read_bytes(), _UPDATES if update else 1), paths))
    programs = {path.name.split(".")[1]: one for path, one in zip(paths, compiled, strict=True)}
    return figures(programs, "SGD" if update else "plain", rounds, steps)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", help="folder for the modules")
    parser.add_argument("--run", help="folder of the modules")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that everything runs")
    parser.add_argument("--json", help="file of the report; cases that it holds are not repeated")
    parser.add_argument("--rounds", type=int, default=11, help="rounds in which the programs take turns")
    parser.add_argument("--steps", type=int, default=4, help="steps of a program in a round")
    given = parser.parse_args(arguments)
    cases = SMALL_CASES if given.small else CASES
    if given.write:
        write(given.write, cases)
    if not given.run:
        return {}
    import jax

    from benchmarks.gpu_table import markdown
    from benchmarks.gpu_timing import environment

    jax.config.update("jax_enable_x64", True)  # TensorFlow counts steps in 64 bits
    report: dict[str, Any] = harness.read_report(given.json) or {"environment": environment(), "cases": {}}
    for case in cases:
        if case in report["cases"]:
            continue
        try:
            report["cases"][case] = measure(given.run, case, given.rounds, given.steps)
        except Exception as error:  # the cases behind it still run
            print(f"{case}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
            continue
        print(f"{case}: {report['cases'][case]}", flush=True)
        harness.write_report(given.json, report)
    print(markdown(report))
    return report


if __name__ == "__main__":
    main()
