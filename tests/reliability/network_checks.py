"""What must hold for every network that is made at random; as a program it checks numbered networks.

    python tests/reliability/network_checks.py FILE FIRST LAST

adds a line of JSON to FILE for each network: its number, way, dtype policy, rules and CPU seconds and, if it fails, why
and its text. Numbers that are in FILE are not checked again.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections import Counter
from typing import Any

if __name__ == "__main__":
    TESTS = pathlib.Path(__file__).parents[1]
    sys.path[1:1] = [str(TESTS), str(TESTS / "norms")]

import keras
import numpy as np
from comparing import ON_JAX, dense, dtype_of, plain_pass, run_traced
from keras import ops
from random_networks import RULES, Network, data_of, loss_of, model_of, numbered, rules_in

import tf_largebatch as lb
from tf_largebatch.norms import KERAS, brute_force_gradient_norms, measure, per_example_gradient_norms

# Of a tensor's largest norm or entry, and of the largest of all tensors: sums in another order, through several layers.
# In half precision a few tens of roundings, which do not cancel where contributions do.
TOLERANCES = {
    "float32": (1e-4, 1e-6),
    "float64": (1e-4, 1e-6),
    "mixed_float16": (3e-2, 1e-2),
    "mixed_bfloat16": (2e-1, 5e-2),
}


def check(network: Network) -> Counter[str]:
    """Asserts all of it, and returns how many layers of each rule the network has."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(network.seed)
    keras.config.set_dtype_policy(network.policy)
    try:
        model = model_of(network)
        check_norms(network, model)
        check_gradients_outputs_and_state(network, model)
        check_training(network, model)
        return rules_in(model)
    finally:
        keras.config.set_dtype_policy("float32")


def run(network: Network, function: Any, *tensors: Any) -> Any:
    """Runs a function of tensors in the network's way: eager, traced, or compiled by XLA (as always on JAX)."""
    if network.way == "eager" and not ON_JAX:
        return function(*(ops.convert_to_tensor(t) for t in tensors))
    return run_traced(function, *tensors, by_xla=network.way == "jit")


def check_norms(network: Network, model: keras.Model) -> None:
    """The norms are the slow reference's; an example of weight 0 has none."""
    x, y, weights = data_of(network)
    loss = loss_of(network)
    found = run(network, lambda x, y: per_example_gradient_norms(model, x, y, loss, sample_weight=weights), x, y)
    expected = brute_force_gradient_norms(model, x, y, loss, sample_weight=weights)
    assert set(found) == {v.path for v in model.trainable_variables}
    # The reference leaves out variables without gradient, and on JAX those whose gradient is zero.
    no_norms = np.zeros(network.batch)
    numbers = {path: tuple(map(ops.convert_to_numpy, (s, expected.get(path, no_norms)))) for path, s in found.items()}
    of_all = max((float(np.max(right)) for _, right in numbers.values()), default=0.0)
    for path, (norms, right) in numbers.items():
        assert dtype_of(found[path]) == "float32", path
        assert_close(norms, right, network.policy, of_all, f"norms of {path}")
        if weights is not None and not any("BatchNormalization" in piece.name for piece in network.pieces):
            assert np.all(norms[weights == 0] == 0), f"norms of {path} at weight 0"


def check_gradients_outputs_and_state(network: Network, model: keras.Model) -> None:
    """The contributions add up to the gradient; outputs, moving averages and random states are plain Keras's."""
    x, y, weights = data_of(network)
    loss = loss_of(network)
    before = [ops.convert_to_numpy(v) for v in model.variables]
    expected, gradients = plain_pass(model, ops.convert_to_tensor(x), lambda y_pred: loss(y, y_pred, weights))
    after = [ops.convert_to_numpy(v) for v in model.variables]
    restore(model, before)

    def measured(x: Any, y: Any) -> Any:
        variables = model.trainable_variables
        output, found = measure(
            model,
            lambda: model(x, training=True),
            lambda y_pred: loss(y, y_pred, weights),
            variables,
            network.batch,
            KERAS,
        )
        return output, [dense(g) for g in found.gradients]

    output, found = run(network, measured, x, y)
    assert_close(output, expected, network.policy, 0.0, "output")
    for v, value in zip(model.variables, after, strict=True):
        assert_close(v, value, network.policy, 0.0, f"{v.path} after the pass")
    restore(model, before)
    gradients = [ops.convert_to_numpy(g) for g in gradients]
    of_all = max(float(np.max(np.abs(g))) for g in gradients)
    for v, some, right in zip(model.trainable_variables, found, gradients, strict=True):
        assert_close(some, right, network.policy, of_all, f"gradient of {v.path}")


def check_training(network: Network, model: keras.Model) -> None:
    """A step of CLARS in LargeBatchModel has plain Keras's logs and moving averages; its update is finite."""
    x, y, weights = data_of(network)
    before = [ops.convert_to_numpy(v) for v in model.variables]
    arguments = {"run_eagerly": network.way == "eager" and not ON_JAX, "jit_compile": network.way == "jit"}

    def trained(
        trainer: keras.Model, optimizer: keras.optimizers.Optimizer
    ) -> tuple[dict[str, float], list[np.ndarray]]:
        restore(model, before)
        if "float16" in network.policy and "bfloat" not in network.policy:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 8.0)
        trainer.compile(
            optimizer,
            loss_of(network),
            metrics=[keras.metrics.MeanAbsoluteError() if network.loss != "sparse" else "sparse_categorical_accuracy"],
            weighted_metrics=[] if weights is None else ["mean_squared_error"] if network.loss != "sparse" else [],
            **arguments,
        )
        logs = trainer.train_on_batch(x, y, sample_weight=weights, return_dict=True)
        return logs, [ops.convert_to_numpy(v) for v in model.variables]

    plain_logs, plain = trained(model, keras.optimizers.SGD(0.0))
    logs, values = trained(lb.LargeBatchModel(model), lb.CLARS(0.1))
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


def check_numbered(file: pathlib.Path, numbers: range) -> None:
    """Checks networks and adds what came out to a file; see the module."""
    done = {json.loads(line)["number"] for line in file.read_text().splitlines()} if file.exists() else set()
    for number in numbers:
        if number in done:
            continue
        network, began = numbered(number, required(number)), time.process_time()
        line: dict[str, Any] = {"number": number, "way": network.way, "policy": network.policy}
        try:
            line["rules"] = check(network)
        except Exception as error:
            line |= {"failed": f"{type(error).__name__}: {error}", "network": repr(network)}
        line["seconds"] = round(time.process_time() - began, 1)
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    check_numbered(pathlib.Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])))
