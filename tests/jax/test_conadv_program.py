"""The program that JAX compiles for a step of ConAdvModel: what waits for what. And a loop of one's own."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from conadv_cases import assert_close, conadv, images, network
from paper_settings import paper

import tf_largebatch as lb


def ready(model, x, y):
    """The state of a model that is built for a batch, as `fit` hands it to the train function."""
    model.get_ready((x, y))
    groups = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables
    return tuple([v.value for v in group] for group in (*groups, model.metrics_variables))


def parameters_behind(text):
    """For each result of a compiled program the numbers of the arguments that it is made of."""
    entry = text[text.index("ENTRY ") :].split("\n}")[0]
    made_of, results = {}, []
    for line in entry.splitlines()[1:]:
        found = re.match(r"\s*(ROOT )?(%?[\w.\-]+) = ", line)
        if not found:
            continue
        name, rest = found.group(2).lstrip("%"), line[found.end() :]
        parameter = re.search(r" parameter\((\d+)\)", " " + rest)
        operands = re.findall(r"%([\w.\-]+)", rest.split(", metadata=")[0])
        operands = [o for o in operands if o in made_of]
        own = {int(parameter.group(1))} if parameter else set()
        made_of[name] = own.union(*(made_of[o] for o in operands))
        if found.group(1):
            results = [made_of[o] for o in operands]
    return results


@pytest.mark.parametrize("optimizer, staleness", [("clars", 1), pytest.param("sgd", 2, marks=pytest.mark.long)])
def test_attack_and_training_of_a_step_do_not_wait_for_each_other(optimizer, staleness):
    """Neither the update depends on the coming batch, nor the coming adversarial images on this one."""
    (x, y), (x2, y2) = images(12), images(12, seed=1)
    make = {"sgd": lambda: None, "clars": lambda: paper(lb.CLARS, 0.1)}[optimizer]
    model = conadv(network(dropout=0.2), make(), staleness=staleness, compiled=True)
    state = ready(model, x, y)
    model.make_train_function()
    arguments = state, model.settings(), (x, y), x, (x2, y2)
    lowered = jax.jit(model.train_function.step, keep_unused=True).lower(*arguments)
    leaves = [len(jax.tree.leaves(argument)) for argument in arguments]
    ends = np.cumsum(leaves)
    of_state, this, coming = set(range(ends[0])), set(range(ends[1], ends[3])), set(range(ends[3], ends[4]))
    results = parameters_behind(lowered.compile().as_text())
    logs_and_state, adversarial = results[:-1], results[-1]
    assert len(logs_and_state) >= len(of_state)
    assert adversarial & coming and adversarial & of_state and not adversarial & this
    assert any(made_of & this for made_of in logs_and_state)
    assert not any(made_of & coming for made_of in logs_and_state)


def test_the_attack_computes_no_weight_gradient():
    x, y = images(12)
    model = conadv(network(), staleness=0, compiled=True)
    state = ready(model, x, y)
    model.make_train_function()
    text = str(jax.make_jaxpr(model.train_function.alone)(state, model.settings(), (x, y)))
    # For each stream a forward pass and the kernel's gradient; for the attack a forward pass and the images' gradient.
    assert text.count("conv_general_dilated[") == 2 * 2 + 2


@pytest.mark.long
def test_a_loop_of_ones_own():
    x, y = images(24)
    fitted, looped = (conadv(network(), staleness=2, compiled=True) for _ in range(2))
    fitted.fit(x, y, epochs=2, batch_size=12, verbose=0, shuffle=False)
    with pytest.raises(ValueError, match=r"must call get_ready\(batch\)"):
        jax.make_jaxpr(looped.train_step)(([], [], [], []), (x[:12], y[:12]))
    state = ready(looped, x[:12], y[:12])
    step = jax.jit(looped.train_step)
    for i in (0, 12) * 2:
        _, state = step(state, (x[i : i + 12], y[i : i + 12]))
    for variables, values in zip((looped.trainable_variables, looped.non_trainable_variables), state, strict=False):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    assert_close(fitted, looped, rtol=1e-5, atol=1e-6)


def test_a_frozen_weight_and_its_snapshots_share_no_array():
    """A compiled step overwrites its arrays: Keras donates them."""
    x, y = images(24)
    net = network()
    net.layers[1].trainable = False
    model = conadv(net, staleness=2, compiled=True)
    model.fit(x, y, batch_size=12, epochs=2, verbose=0)
    model.evaluate(x, y, verbose=0)
    pointers = [v.value.unsafe_buffer_pointer() for v in model.variables if v.value.size > 1]
    assert len(set(pointers)) == len(pointers)
