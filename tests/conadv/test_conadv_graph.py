"""The traced step: what waits for what. TensorFlow only: tests/jax/test_conadv_program.py reads JAX's program."""

from __future__ import annotations

import functools

import pytest
import tensorflow as tf
from conadv_cases import assert_close, conadv, images, network
from paper_settings import paper
from selection import long

import tf_largebatch as lb


def ancestors(ops):
    """Everything that must have run before, by data or by control; arguments and captured variables are not run."""
    found, stack = set(), list(ops)
    while stack:
        op = stack.pop()
        for earlier in [*(t.op for t in op.inputs), *op.control_inputs]:
            if earlier not in found and earlier.type != "Placeholder":
                found.add(earlier)
                stack.append(earlier)
    return found


OPTIMIZERS = {"sgd": lambda: None, "clars": lambda: paper(lb.CLARS, 0.1)}


@functools.cache  # tracing takes most of the time, and nothing changes a graph
def traced(staleness, optimizer="sgd"):
    """The ops of a step, and the model."""
    model = conadv(network(dropout=0.2), OPTIMIZERS[optimizer](), staleness=staleness, num_steps=2, compiled=True)
    x, y = images()
    batch = (tf.constant(x), tf.constant(y))
    model.make_train_function()
    model.get_ready(batch)
    graph = tf.function(model.train_function.step, autograph=False).get_concrete_function(batch, batch[0], batch).graph
    # Nothing is hidden in a function but the mixing of a seed, which takes whole numbers and reads no variable.
    functions = [op for op in graph.get_operations() if "PartitionedCall" in op.type]
    assert all(op.type == "PartitionedCall" and all(t.dtype == tf.int32 for t in op.inputs) for op in functions)
    # What is run: tracing leaves ops behind that nothing needs.
    ends = [*(t.op for t in graph.outputs), *graph.control_outputs]
    return ancestors(ends) | set(ends), model


def of(ops, scope):
    """The ops of one of the two scopes; the gradients of a scope's ops are named after it."""
    return [op for op in ops if next((p for p in op.name.split("/") if p in ("attack", "train")), None) == scope]


@pytest.mark.parametrize("staleness, optimizer", [(1, "clars"), long(2, "sgd"), long(3, "clars")])
def test_attack_and_training_of_a_step_do_not_wait_for_each_other(staleness, optimizer):
    ops, model = traced(staleness, optimizer)
    attack, train = of(ops, "attack"), of(ops, "train")
    assert any("Conv2DBackpropInput" in op.type for op in attack)
    gradients = [op for op in train if "gradient_tape" in op.name]
    writes = [op for op in ops if op.type.startswith("Assign")]
    assert gradients and len(writes) > len(model.trainable_variables)
    assert not ancestors(gradients) & set(attack)
    # Neither does the update, but that it waits for the attack to have read the weights.
    assert {op.type for op in ancestors(writes) & set(attack)} <= {"ReadVariableOp"}
    assert not ancestors(attack) & set(train)
    assert not ancestors(attack) & set(writes)


def test_the_sequential_step_waits_for_its_attack():
    ops, _ = traced(0)
    attack = set(of(ops, "attack"))
    gradients = [op for op in of(ops, "train") if "gradient_tape" in op.name]
    assert any("Conv2DBackpropInput" in op.type for op in ancestors(gradients) & attack)


def test_the_attack_computes_no_weight_gradient():
    for ops, _ in (traced(0), traced(1)):  # CLARS has the gradient of its own forms of the norms
        assert any(op.type == "Conv2DBackpropFilter" for op in of(ops, "train"))
        assert not any(op.type == "Conv2DBackpropFilter" for op in of(ops, "attack"))
        writes = {op for op in ops if op.type.startswith("Assign")}
        assert not writes & set(of(ops, "attack"))


@pytest.mark.parametrize("autograph", [False, long(True)])
def test_a_training_loop_of_ones_own(autograph):
    x, y = images(24)
    fitted, looped = (conadv(network(), staleness=2) for _ in range(2))
    fitted.fit(x, y, epochs=2, batch_size=12, verbose=0, shuffle=False)
    step = tf.function(looped.train_step, autograph=autograph)
    for i in (0, 12) * 2:
        step((tf.constant(x[i : i + 12]), tf.constant(y[i : i + 12])))
    assert_close(fitted, looped, rtol=1e-5, atol=1e-6)
