"""What the TPU compiler says of ResNet-50's training steps: operations, memory traffic, memory and collectives.

    python -m benchmarks.tpu_compile                                  # every case, about half an hour on two cores
    python -m benchmarks.tpu_compile --cases=plain,clars --json=benchmarks/reports/tpu_compile.json
    python -m benchmarks.tpu_compile --resume --json=benchmarks/reports/tpu_compile.json   # those that the file lacks

ResNet-50 at 224 px in mixed bfloat16, compiled for a TPU by the real compiler and never run (tpu_compiler.py): there is
no timing noise in these figures, and no time either. Each case compiles in a process of its own. Ratios are to the
plain step, SGD with momentum, of the same batch on the same device.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

from benchmarks import harness, tpu_compiler

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

FLAGS = flags.FLAGS

PIXELS = 224
CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step of one replica.

    Attributes:
        clars: Whether the optimizer is CLARS with per-example norms, not SGD with momentum.
        conadv: Whether the step trains on the images and their adversarial images and attacks the next images besides.
        norm_examples: How many examples are measured (None: all).
        batch: Images a replica, adversarial images not counted.
        micro_batch_size: Images in a micro-batch; None for no split.
        topology: Chips and their arrangement.
        replicas: How many of them take part.
        baseline: The case that the ratios are to.
        backend: Of Keras.
    """

    clars: bool = False
    conadv: bool = False
    norm_examples: int | None = None
    batch: int = 96
    micro_batch_size: int | None = None
    topology: str = "v5e:2x2"
    replicas: int = 1
    baseline: str | None = "plain"
    backend: str = "tensorflow"


# A global batch of 98,304 as 256 times 384.
_POD = {"topology": "v5e:16x16", "replicas": 256, "batch": 384, "micro_batch_size": 96, "baseline": "pod_plain"}
# The largest of which ConAdv's fit the memory.
_POD_CONADV = {**_POD, "conadv": True, "micro_batch_size": 192}
CASES = {
    "plain": Case(baseline=None),
    "clars": Case(clars=True),
    "clars_sampled": Case(clars=True, norm_examples=12),
    # As many images as ConAdv trains on.
    "plain_twice": Case(batch=192, baseline=None),
    "conadv": Case(conadv=True, baseline="plain_twice"),
    "conadv_clars": Case(conadv=True, clars=True, baseline="plain_twice"),
    "pod_plain": Case(**{**_POD, "baseline": None}),
    "pod_clars": Case(clars=True, **_POD),
    # Twice the images, the adversarial images, and the attack.
    "pod_conadv": Case(**_POD_CONADV),
    "pod_conadv_clars": Case(clars=True, **_POD_CONADV),
}
_JAX = {"backend": "jax", "baseline": "jax_plain"}
# Each chip has 96 images: the step has no loop.
_JAX_POD = {"topology": "v5e:16x16", "replicas": 256, "backend": "jax", "baseline": "jax_pod_plain"}
CASES |= {
    "jax_plain": Case(backend="jax", baseline=None),
    "jax_clars": Case(clars=True, **_JAX),
    "jax_clars_sampled": Case(clars=True, norm_examples=12, **_JAX),
    "jax_plain_twice": Case(batch=192, backend="jax", baseline=None),
    "jax_conadv": Case(conadv=True, backend="jax", baseline="jax_plain_twice"),
    "jax_conadv_clars": Case(conadv=True, clars=True, backend="jax", baseline="jax_plain_twice"),
    "jax_pod_plain": Case(**{**_JAX_POD, "baseline": None}),
    "jax_pod_clars": Case(clars=True, **_JAX_POD),
}
_REPORT = "benchmarks/reports/tpu_compile.json"
_TITLES = {
    "plain": "plain, batch 96",
    "clars": "CLARS, all 96 examples",
    "clars_sampled": "CLARS, norm_examples=12",
    "plain_twice": "plain, batch 192",
    "conadv": "ConAdv: 96 clean and 96 adversarial images, the attack on the next 96",
    "conadv_clars": "the same with CLARS, all examples",
    "pod_plain": "256 chips, global batch 98,304: plain",
    "pod_clars": "the same with CLARS, all examples",
    "pod_conadv": "256 chips, global batch 98,304 and as many adversarial images: ConAdv",
    "pod_conadv_clars": "the same with CLARS, all examples",
    "jax_plain": "JAX: plain, batch 96",
    "jax_clars": "JAX: CLARS, all 96 examples",
    "jax_clars_sampled": "JAX: CLARS, norm_examples=12",
    "jax_plain_twice": "JAX: plain, batch 192",
    "jax_conadv": "JAX: ConAdv, 96 clean and 96 adversarial images, the attack on the next 96",
    "jax_conadv_clars": "JAX: the same with CLARS, all examples",
    "jax_pod_plain": "JAX: 256 chips, global batch 24,576: plain",
    "jax_pod_clars": "JAX: the same with CLARS, all examples",
}
_RATIOS = ("flops", "bytes_accessed", "temporary_bytes", "estimated_cycles")


def build_model(case: Case) -> Any:
    """The compiled Keras model of a case."""
    import keras

    import tf_largebatch

    keras.config.set_dtype_policy("mixed_bfloat16")
    network = keras.applications.ResNet50(weights=None, classes=CLASSES, classifier_activation=None)
    keras.config.set_dtype_policy("float32")
    if case.conadv:
        model = tf_largebatch.ConAdvModel(
            network, norm_examples=case.norm_examples, micro_batch_size=case.micro_batch_size
        )
    elif case.backend == "jax" and not case.clars:
        model = network
    else:
        model = tf_largebatch.LargeBatchModel(
            network, norm_examples=case.norm_examples, micro_batch_size=case.micro_batch_size
        )
    if case.clars:
        optimizer = tf_largebatch.CLARS(0.1, momentum=0.9, gradient_norms="per_example")
    else:
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, jit_compile=True)
    optimizer.build(model.trainable_variables)
    return model


def build_step(case: Case) -> tuple[Any, list[Any]]:
    """TensorFlow's step, traced for a TPU and never called, and the specifications of its arguments."""
    import tensorflow as tf

    model = build_model(case)
    images, labels = tf.TensorSpec((case.batch, PIXELS, PIXELS, 3)), tf.TensorSpec((case.batch,), tf.int32)
    if not case.conadv:
        step = tf.function(lambda x, y: model.train_step((x, y))["loss"], jit_compile=True, autograph=False)
        return step, [images, labels]
    model.get_ready(_two_images())

    def train_and_attack(x: Any, y: Any, copies: Any, next_x: Any, next_y: Any) -> Any:
        next_copies = model.attack_next((next_x, next_y))
        return model.train_on_pair((x, y), copies)["loss"], next_copies

    step = tf.function(train_and_attack, jit_compile=True, autograph=False)
    return step, [images, labels, images, images, labels]


def build_jax_step(case: Case) -> tuple[Any, Any, Any]:
    """JAX's step, and the shapes of its state and its data."""
    import jax
    import jax.numpy as jnp

    model = build_model(case)
    batch = case.replicas * case.batch
    data = (
        jax.ShapeDtypeStruct((batch, PIXELS, PIXELS, 3), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    if case.conadv:
        model.get_ready(_two_images())
    optimizer, metrics = model.optimizer.variables, model.metrics_variables
    groups = (model.trainable_variables, model.non_trainable_variables, optimizer, metrics)
    state = tuple([jax.ShapeDtypeStruct(v.shape, v.value.dtype) for v in group] for group in groups)
    if not case.conadv:
        return model.train_step, state, data

    from tf_largebatch.backend.jax.pipeline import TrainFunction
    from tf_largebatch.conadv.in_flight import InFlight

    steps, settings = TrainFunction(model, InFlight(), ahead=True), model.settings()

    def train_and_attack(state: Any, data: Any) -> Any:
        batch, adversarial, coming = data
        logs, state, images = steps.step(state, settings, batch, adversarial, coming)
        return (logs, images), state

    return train_and_attack, state, (data, data[0], data)


def _two_images() -> tuple[Any, Any]:
    import numpy as np

    return np.zeros((2, PIXELS, PIXELS, 3), np.float32), np.zeros(2, np.int32)


def compile_case(case: Case, effort: float, hlo_file: str | None = None) -> dict[str, Any]:
    """Compiles the case in this process.

    Returns:
        The case and what `tpu_compiler.Compiled` says; operations and traffic with the loop over micro-batches counted
        as often as it runs.
    """
    from tf_largebatch.norms.device import compiling_for

    tpu_compiler.use_settings()
    start = time.perf_counter()
    where = {"topology": case.topology, "replicas": case.replicas, "effort": effort}
    with compiling_for("tpu", case.replicas):
        if case.backend == "jax":
            compiled = tpu_compiler.compile_jax_for_tpu(*build_jax_step(case), **where)
        else:
            with tpu_compiler.all_reduce_among(case.replicas):
                stablehlo = tpu_compiler.lower(*build_step(case))
            compiled = tpu_compiler.compile_for_tpu(stablehlo, **where)
    if hlo_file:
        with open(hlo_file, "w") as file:
            file.write(compiled.hlo)
    figures = dataclasses.asdict(compiled)
    hlo = figures.pop("hlo")
    # The compiler counts a loop's body once. The update, which the loop leaves out, is so counted too often: it is a
    # thousandth of the operations and a fiftieth of the traffic.
    times = 1 if case.micro_batch_size is None else case.batch // case.micro_batch_size
    return {
        **dataclasses.asdict(case),
        **figures,
        "flops": times * compiled.flops,
        "bytes_accessed": times * compiled.bytes_accessed,
        "estimated_cycles": times * compiled.estimated_cycles(),
        "collectives": len(compiled.collectives),
        "collective_bytes": compiled.collective_bytes(),
        "host_calls": len(compiled.host_calls()),
        "loops": hlo.count(" while("),
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def _in_a_process_of_its_own(name: str, effort: float, hlo_file: str | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.tpu_compile", f"--task={name}", f"--effort={effort}"]
    command += [f"--hlo={hlo_file}"] if hlo_file else []
    environment = {**os.environ, "KERAS_BACKEND": CASES[name].backend, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name} does not compile:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _environment() -> dict[str, str]:
    packages = ("tensorflow", "keras", "jax", "jaxlib", "libtpu")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _row(name: str, result: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    ratios = [f"{result[key] / baseline[key]:.3f}" if baseline and key in baseline else "" for key in _RATIOS]
    return (
        f"{name:18} {result['flops'] / 1e12:7.3f} {ratios[0]:>6} {result['bytes_accessed'] / 1e9:8.2f} {ratios[1]:>6} "
        f"{result['temporary_bytes'] / 2**30:7.3f} {ratios[2]:>6} {result['peak_bytes'] / 2**30:7.2f} {ratios[3]:>6} "
        f"{result['collectives']:11} {result['collective_bytes'] / 1e6:7.1f} {result['compile_seconds']:8.0f}"
    )


def markdown(report: dict[str, Any]) -> str:
    """The table of benchmarks/README.md, from what `--json` wrote; empty cells where an older report has no figure."""
    lines = [
        "| step | micro-batch | 1e12 operations | GB | temporary GiB | 1e6 cycles | peak GiB | all-reduces |",
        "|---|---|---|---|---|---|---|---|",
    ]
    scales = dict(zip(_RATIOS, (1e12, 1e9, 2**30, 1e6), strict=True))
    for name, title in _TITLES.items():
        case = report["cases"].get(name)
        if case is None:
            continue
        baseline = report["cases"].get(case["baseline"], {})
        cells = [title, str(case["micro_batch_size"] or "none")]
        for key, scale in scales.items():
            cell = f"{case[key] / scale:.4g}" if key in case else ""
            cells.append(f"{cell} ({case[key] / baseline[key]:.3f})" if cell and key in baseline else cell)
        cells.append(f"{case['peak_bytes'] / 2**30:.2f}")
        size = f", {case['collective_bytes'] / 1e6:.1f} MB" if case.get("collective_bytes") else ""
        cells.append(f"{case['collectives'] or 'none'}{size}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Compiles the cases, prints a table and writes JSON, adding to the cases that the file has."""
    del argv
    if FLAGS.markdown:
        print(markdown(harness.read_report(FLAGS.json or _REPORT)))
        return
    missing = tpu_compiler.why_unavailable()
    if missing:
        raise SystemExit(missing)
    if FLAGS.task:
        print(json.dumps(compile_case(CASES[FLAGS.task], FLAGS.effort, FLAGS.hlo)))
        return
    report: dict[str, Any] = {"environment": _environment(), "effort": FLAGS.effort, "cases": {}}
    earlier = harness.read_report(FLAGS.json)
    if earlier:
        # The compiler says its own version only when it has compiled something.
        versions = {name: version for name, version in earlier["environment"].items() if name != "compiler"}
        if versions == report["environment"] and earlier["effort"] == FLAGS.effort:
            report.update(environment=earlier["environment"], cases=earlier["cases"])
    print(f"{'case':18} {'Tflop':>7} {'ratio':>6} {'GB read+':>8} {'ratio':>6} {'temp GiB':>7} {'ratio':>6} ", end="")
    print(f"{'peak':>6} {'cycles':>6} {'collectives':>11} {'MB':>7} {'compiled':>8}")
    for name in FLAGS.cases or list(CASES):
        if FLAGS.resume and name in report["cases"]:
            continue
        result = report["cases"][name] = _in_a_process_of_its_own(name, FLAGS.effort, FLAGS.hlo)
        report["environment"]["compiler"] = result.pop("compiler")
        print(_row(name, result, report["cases"].get(result["baseline"])), flush=True)
        harness.write_report(FLAGS.json, report)


if __name__ == "__main__":
    flags.DEFINE_list("cases", None, f"Of {', '.join(CASES)}; default: all.")
    flags.DEFINE_float(
        "effort", -1.0, "Of the compiler: -1 compiles in minutes, 0 is its default and ten times slower."
    )
    flags.DEFINE_string("json", None, "Where to write the report, after every case.")
    flags.DEFINE_boolean("resume", False, "Whether to leave out the cases that the report has.")
    flags.DEFINE_boolean("markdown", False, f"Whether to print the table of the report (--json, else {_REPORT}) only.")
    flags.DEFINE_string("hlo", None, "Where to write the compiled program of the last case.")
    flags.DEFINE_enum("task", None, list(CASES), "Used by the program itself.")
    app.run(main)
