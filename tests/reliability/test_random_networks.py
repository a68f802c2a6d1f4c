"""Property tests: networks made at random from the layers with a rule, measured and trained in every way."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from comparing import ON_JAX
from hypothesis import given, reject
from network_checks import PlainKerasFails, check, required
from random_networks import DRAWS, PIECES, RULES, Network, Piece, networks, numbered
from selection import long_unless

# Networks that once failed, by what was wrong.
FOUND: dict[str, Network] = {
    # The first state of a cell is zero: after one step its recurrent kernel has no gradient, and the slow reference on
    # JAX leaves it out, where it leaves out nothing on TensorFlow.
    "a kernel whose gradient is zero": Network((Piece("StackedRNNCells"),), sizes=(3,)),
    # Its second table is not used: no gradient and no norm, in the package and in the slow reference.
    "a variable without gradient": Network((Piece("ReversibleEmbedding", numbers=(0, 0, 1, 1)),)),
}
# JAX compiles every operation of the slow reference; there most run in `make test-long`.
QUICK = 4


@pytest.mark.skipif(ON_JAX, reason="the slow reference takes ten seconds for a network on JAX: make test-long")
@pytest.mark.parametrize("number", range(QUICK))
def test_a_few_networks(number):
    # Tracing takes longer than the rest; the other ways run in `make test-long`.
    check(dataclasses.replace(numbered(number, required(number), ways=["eager"]), batch=2))


@pytest.mark.parametrize("name", long_unless(FOUND, () if ON_JAX else FOUND))
def test_networks_that_once_failed(name):
    check(FOUND[name])


COUNTS: Counter[str] = Counter()


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)  # 38: 494 networks in all
def test_networks_with_each_rule(rule, capsys):
    before = COUNTS.total()

    @DRAWS
    @given(network=networks([rule]))
    def holds(network):
        try:
            COUNTS.update(check(network))
        except PlainKerasFails:
            COUNTS["plain Keras fails"] += 1
            reject()
        COUNTS["networks"] += 1

    holds()
    assert COUNTS[rule] and COUNTS.total() > before
    with capsys.disabled():
        print(f"\n{rule}: so far {dict(sorted(COUNTS.items()))}")


def test_every_rule_can_be_drawn():
    # Of the table of layers in tests/norms/every_layer.py.
    from every_layer import MEASURED

    assert set(MEASURED) == set(RULES) <= set(PIECES)


def test_a_network_is_repeated_from_its_text():
    network = numbered(3, required(3))
    assert eval(repr(network), {"Network": Network, "Piece": Piece}) == network
