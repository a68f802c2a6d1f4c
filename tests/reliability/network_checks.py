"""What must hold for every network that is made at random; as a program it checks numbered networks.

    python tests/reliability/network_checks.py FILE FIRST LAST [--norms=FOLDER]

adds a line of JSON to FILE for each network: its number, way, dtype policy, rules and CPU seconds and, if it fails, why
and its text. Numbers that are in FILE are not checked again. At the end it prints the counts of FILE.

The slow reference takes ten seconds and more for a network on JAX, which compiles each of its operations. With
`--write-norms=FOLDER` the program writes, on TensorFlow, weights and the slow reference's norms of the networks that
draw no random numbers. With `--norms=FOLDER` they are compared with these norms, on the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    TESTS = pathlib.Path(__file__).parents[1]
    sys.path[1:1] = [str(TESTS), str(TESTS / "norms")]
    # The programs are the same; LLVM takes less time to compile them.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import keras
import numpy as np
from comparing import ON_JAX, dense, dtype_of, plain_pass, run_traced
from keras import ops
from random_networks import RULES, Network, data_of, loss_of, model_of, numbered, rules_in

import tf_largebatch as lb
from tf_largebatch.core.paths import variable_labels
from tf_largebatch.norms import KERAS, brute_force_gradient_norms, measure, per_example_gradient_norms
from tf_largebatch.norms.per_example import undivided

# Of a tensor's largest norm or entry, and of the largest of all tensors: sums in another order, through several layers.
# In half precision a few tens of roundings, which do not cancel where contributions do.
TOLERANCES = {
    "float32": (1e-4, 1e-6),
    "float64": (1e-4, 1e-6),
    "mixed_float16": (3e-2, 1e-2),
    "mixed_bfloat16": (2e-1, 5e-2),
}


class PlainKerasFails(Exception):
    """Keras itself cannot run a network, or finds another gradient each time: there is nothing to compare with."""


def check(network: Network, norms: pathlib.Path | None = None) -> Counter[str]:
    """Asserts all of it, and returns how many layers of each rule the network has.

    Args:
        network: The network.
        norms: A file of `write_norms`, which takes the place of the slow reference; None for the reference itself.

    Raises:
        PlainKerasFails: If there is nothing to compare with.
    """
    with built(network) as model:
        check_measurement(network, model, read_norms(norms, model) if norms else reference_norms(network, model))
        check_training(network, model)
        return rules_in(model)


@contextlib.contextmanager
def built(network: Network) -> Iterator[keras.Model]:
    """The network's model, within its seed and dtype policy."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(network.seed)
    keras.config.set_dtype_policy(network.policy)
    try:
        yield model_of(network)
    finally:
        keras.config.set_dtype_policy("float32")


def reference_norms(network: Network, model: keras.Model) -> dict[str, Any]:
    """The slow reference's norms."""
    x, y, weights = data_of(network)
    return brute_force_gradient_norms(model, x, y, loss_of(network), sample_weight=weights)


def write_norms(file: pathlib.Path, network: Network) -> None:
    """Writes a network's variables and the slow reference's norms, in the order of its variables."""
    with built(network) as model:
        found = reference_norms(network, model)
        zero = np.zeros(network.batch, "float32")
        norms = {f"norms {i}": found.get(v.path, zero) for i, v in enumerate(model.trainable_variables)}
        values = {f"variable {i}": v for i, v in enumerate(model.variables)}
        np.savez(file, **{name: ops.convert_to_numpy(t) for name, t in {**norms, **values}.items()})


def read_norms(file: pathlib.Path, model: keras.Model) -> dict[str, Any]:
    """Gives a model the variables in a file of `write_norms` and returns the norms in it."""
    with np.load(file) as arrays:
        restore(model, [arrays[f"variable {i}"] for i in range(len(model.variables))])
        return {v.path: arrays[f"norms {i}"] for i, v in enumerate(model.trainable_variables)}


def run(network: Network, function: Any, *tensors: Any) -> Any:
    """Runs a function of tensors in the network's way: eager, traced, or compiled by XLA (as always on JAX)."""
    if network.way == "eager" and not ON_JAX:
        return function(*(ops.convert_to_tensor(t) for t in tensors))
    return run_traced(function, *tensors, by_xla=network.way == "jit")


def check_measurement(network: Network, model: keras.Model, expected_norms: dict[str, Any]) -> None:
    """Norms are the slow reference's, contributions add up to the gradient, the rest of the pass is plain Keras's.

    One program in the network's way gives all of it. `per_example_gradient_norms` adds to that only the restored state
    and the names: networks that run eagerly call it too.
    """
    x, y, weights = data_of(network)
    loss = loss_of(network)
    before = [ops.convert_to_numpy(v) for v in model.variables]
    expected, gradients, after = plain_result(network, model)
    variables = model.trainable_variables

    def measured(x: Any, y: Any) -> Any:
        output, found = measure(
            model,
            lambda: model(x, training=True),
            lambda y_pred: loss(y, y_pred, weights),
            variables,
            network.batch,
            KERAS,
        )
        undo = undivided(loss, network.batch, weights)
        norms = {
            label: undo * ops.sqrt(squares)
            for label, squares in zip(variable_labels(variables), found.squared_norms, strict=True)
            if squares is not None
        }
        gradients = {i: dense(g) for i, g in enumerate(found.gradients) if g is not None}
        return output, gradients, norms

    output, found, norms = run(network, measured, x, y)
    assert_close(output, expected, network.policy, 0.0, "output")
    for v, value in zip(model.variables, after, strict=True):
        assert_close(v, value, network.policy, 0.0, f"{v.path} after the pass")
    restore(model, before)
    of_all = max(float(np.max(np.abs(g))) for g in gradients)
    for i, (v, right) in enumerate(zip(variables, gradients, strict=True)):
        if i in found:
            assert_close(found[i], right, network.policy, of_all, f"gradient of {v.path}")
        else:  # a variable that the loss does not depend on
            assert not np.any(right), f"{v.path} has no gradient"
    paths = {variables[i].path for i in found}
    assert_norms_are(norms, expected_norms, network, paths)
    if network.way == "eager":
        norms = run(network, lambda x, y: per_example_gradient_norms(model, x, y, loss, sample_weight=weights), x, y)
        assert_norms_are(norms, expected_norms, network, paths)
        for v, value in zip(model.variables, before, strict=True):
            assert np.array_equal(ops.convert_to_numpy(v), value), f"{v.path} after per_example_gradient_norms"


def plain_result(network: Network, model: keras.Model) -> tuple[Any, list[np.ndarray], list[np.ndarray]]:
    """Plain Keras's output, gradients and variables after a pass; the model's variables are restored."""
    x, y, weights = data_of(network)
    loss = loss_of(network)
    before = [ops.convert_to_numpy(v) for v in model.variables]

    def one_pass() -> tuple[Any, list[np.ndarray], list[np.ndarray]]:
        output, gradients = plain_pass(model, ops.convert_to_tensor(x), lambda y_pred: loss(y, y_pred, weights))
        after = [ops.convert_to_numpy(v) for v in model.variables]
        restore(model, before)
        return output, [ops.convert_to_numpy(g) for g in gradients], after

    try:
        found = one_pass()
    except Exception as error:
        raise PlainKerasFails(f"{type(error).__name__}: {error}") from error
    if network.policy == "mixed_bfloat16" and not ON_JAX:
        # oneDNN's gradient of a convolution in bfloat16 holds memory that nothing wrote, for some shapes.
        if not all(np.array_equal(g, again) for g, again in zip(found[1], one_pass()[1], strict=True)):
            raise PlainKerasFails("its gradient is another one each time")
    return found


def assert_norms_are(found: dict[str, Any], expected: dict[str, Any], network: Network, paths: set[str]) -> None:
    """Asserts that norms by variable are the slow reference's; an example of weight 0 has none.

    Args:
        found: The norms.
        expected: Those of the slow reference.
        network: The network.
        paths: The variables that the loss depends on.
    """
    assert set(found) == paths
    assert all(path in paths or not np.any(ops.convert_to_numpy(norms)) for path, norms in expected.items())
    # The reference leaves out variables without gradient, and on JAX those whose gradient is zero.
    no_norms = np.zeros(network.batch)
    numbers = {path: tuple(map(ops.convert_to_numpy, (s, expected.get(path, no_norms)))) for path, s in found.items()}
    weights = data_of(network)[2]
    of_all = max((float(np.max(right)) for _, right in numbers.values()), default=0.0)
    for path, (norms, right) in numbers.items():
        assert dtype_of(found[path]) == "float32", path
        assert_close(norms, right, network.policy, of_all, f"norms of {path}")
        if weights is not None and not any("BatchNormalization" in piece.name for piece in network.pieces):
            assert np.all(norms[weights == 0] == 0), f"norms of {path} at weight 0"


def check_training(network: Network, model: keras.Model) -> None:
    """A step of CLARS in LargeBatchModel has plain Keras's logs and moving averages; its update is finite."""
    x, y, weights = data_of(network)
    before = [ops.convert_to_numpy(v) for v in model.variables]
    # Plain Keras's step is the reference: eager execution neither traces nor compiles it.
    plainly = {"run_eagerly": not ON_JAX, "jit_compile": False}
    in_its_way = {"run_eagerly": network.way == "eager" and not ON_JAX, "jit_compile": network.way == "jit"}

    def build(trainer: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        if ON_JAX:
            return
        # A step that makes variables is traced and compiled twice on TensorFlow.
        optimizer.build(model.trainable_variables)
        trainer.compute_metrics(x, y, model(x, training=False), sample_weight=weights)
        trainer.reset_metrics()

    def trained(
        trainer: keras.Model, optimizer: keras.optimizers.Optimizer, arguments: dict[str, bool]
    ) -> tuple[dict[str, float], list[np.ndarray]]:
        if "float16" in network.policy and "bfloat" not in network.policy:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 8.0)
        trainer.compile(
            optimizer,
            loss_of(network),
            metrics=[keras.metrics.MeanAbsoluteError() if network.loss != "sparse" else "sparse_categorical_accuracy"],
            weighted_metrics=[] if weights is None else ["mean_squared_error"] if network.loss != "sparse" else [],
            **arguments,
        )
        build(trainer, optimizer)
        restore(model, before)
        logs = trainer.train_on_batch(x, y, sample_weight=weights, return_dict=True)
        return logs, [ops.convert_to_numpy(v) for v in model.variables]

    calls_again = [piece for piece in network.pieces if piece.wiring in ("averaged", "twice")]
    if ON_JAX and any(piece.name == "ActivityRegularization" for piece in calls_again):
        # LargeBatchModel counts both, as Keras does on TensorFlow.
        raise PlainKerasFails("on JAX its step counts one of the losses of a layer that is called twice")
    plain_logs, plain = trained(model, keras.optimizers.SGD(0.0), plainly)
    logs, values = trained(lb.LargeBatchModel(model), lb.CLARS(0.1), in_its_way)
    restore(model, before)
    assert list(logs) == list(plain_logs)
    for name, value in plain_logs.items():
        assert_close(np.asarray(logs[name]), np.asarray(value), network.policy, 0.0, f"{name} of a step")
    trainable = {id(v) for v in model.trainable_variables}
    for v, value, right in zip(model.variables, values, plain, strict=True):
        if id(v) in trainable:
            assert np.all(np.isfinite(value)), f"{v.path} after a step: {value}"
        else:
            assert_close(value, right, network.policy, 0.0, f"{v.path} after a step")


def restore(model: keras.Model, values: list[np.ndarray]) -> None:
    """Gives the variables these values."""
    for v, value in zip(model.variables, values, strict=True):
        v.assign(value)


def assert_close(found: Any, right: Any, policy: str, of_all: float, what: str) -> None:
    """Asserts that a tensor is another one up to the policy's tolerance.

    Args:
        found: The tensor.
        right: What it should be.
        policy: A key of `TOLERANCES`.
        of_all: The largest entry of the tensors that it belongs to, of which some may be nothing but rounding.
        what: Its name, for the message.
    """
    found, right = (np.asarray(ops.convert_to_numpy(t), "float64") for t in (found, right))
    own, shared = TOLERANCES[policy]
    np.testing.assert_allclose(
        found, right, rtol=0, atol=own * float(np.max(np.abs(right), initial=0)) + shared * of_all + 1e-7, err_msg=what
    )


def required(number: int) -> tuple[str, str]:
    """The rules that a numbered network has at least: 19 networks in a row have all 38."""
    return RULES[2 * number % len(RULES)], RULES[(2 * number + 1) % len(RULES)]


def check_numbered(file: pathlib.Path, numbers: range, norms: pathlib.Path | None) -> None:
    """Checks networks and adds what came out to a file; see the module."""
    done = {line["number"] for line in lines_of(file)}
    for number in numbers:
        if number in done:
            continue
        network, began = numbered(number, required(number)), time.process_time()
        line: dict[str, Any] = {"number": number, "way": network.way, "policy": network.policy}
        try:
            written = norms / f"{number}.npz" if norms else None
            line["rules"] = check(network, written if written and written.exists() else None)
        except PlainKerasFails as error:
            line["plain Keras fails"] = str(error)
        except Exception as error:
            line |= {"failed": f"{type(error).__name__}: {error}", "network": repr(network)}
        line["seconds"] = round(time.process_time() - began, 1)
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")


def lines_of(file: pathlib.Path) -> list[dict[str, Any]]:
    """What a file says of each network."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def report(file: pathlib.Path) -> str:
    """The counts of a file: networks, failures, ways, dtype policies and layers."""
    lines = lines_of(file)
    failed, not_compared = (
        [line["number"] for line in lines if key in line] for key in ("failed", "plain Keras fails")
    )
    rules = sum((Counter(line.get("rules", {})) for line in lines), Counter())
    counts = {
        "ways": Counter(line["way"] for line in lines),
        "policies": Counter(line["policy"] for line in lines),
        "ways and policies": Counter(f"{line['way']} {line['policy']}" for line in lines),
        "layers": Counter({rule: rules[rule] for rule in RULES}),
    }
    seconds = sum(line["seconds"] for line in lines)
    return "\n".join(
        [
            f"{len(lines)} networks in {seconds:.0f} s of processor time",
            f"failed: {failed or 'none'}; plain Keras fails: {not_compared or 'none'}",
            *(f"{name}: {', '.join(f'{key} {n}' for key, n in of.most_common())}" for name, of in counts.items()),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--norms", type=pathlib.Path)
    parser.add_argument("--write-norms", type=pathlib.Path)
    given = parser.parse_args()
    if given.write_norms:
        given.write_norms.mkdir(exist_ok=True)
        for number in range(given.first, given.last):
            network = numbered(number, required(number))
            if all(piece.name != "Dropout" for piece in network.pieces):
                write_norms(given.write_norms / f"{number}.npz", network)
    else:
        check_numbered(given.file, range(given.first, given.last), given.norms)
        print(report(given.file))
