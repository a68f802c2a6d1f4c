"""Times compiled programs in turns on an accelerator, and reads their memory; needs JAX alone."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from benchmarks import harness


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program and what it starts from.

    Attributes:
        call: From a state to a result and the new state; the old one's memory may be given away.
        state: The first state.
        bytes: Arguments, results and temporary arrays, those that share memory counted once.
        repeats: How often a call does what is to be timed.
    """

    call: Callable[[Any], tuple[Any, Any]]
    state: Any
    bytes: int
    repeats: int = 1


def memory_bytes(found: Any) -> int:
    """Arguments, results and temporary arrays of a program's memory analysis, those that share memory counted once."""
    return (
        found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    )


def times_in_turns(programs: Mapping[str, Compiled], rounds: int, steps: int) -> dict[str, list[float]]:
    """The seconds of a step in every round, by program; a first round is not kept."""
    states = {name: one.state for name, one in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, one in programs.items():
            start, state = time.perf_counter(), states[name]
            for _ in range(steps):
                result, state = one.call(state)
            jax.block_until_ready((result, state))
            states[name] = state
            if number:
                times[name].append((time.perf_counter() - start) / (steps * one.repeats))
    return times


def figures(programs: Mapping[str, Compiled], baseline: str, rounds: int, steps: int) -> dict[str, Any]:
    """The row of a report: the baseline's time and memory, and the others' ratios to them."""
    times, base = times_in_turns(programs, rounds, steps), programs[baseline]
    row: dict[str, Any] = {
        "baseline": baseline,
        f"{baseline}_ms": 1000 * statistics.median(times[baseline]),
        f"{baseline}_bytes": base.bytes,
    }
    for name, one in programs.items():
        if name != baseline:
            row |= harness.median_and_quartiles(f"{name}_ratio", harness.ratios(times[name], times[baseline]))
            row[f"{name}_memory_ratio"] = one.bytes / base.bytes
    return row


def environment() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    device = jax.devices()[0]
    return {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
