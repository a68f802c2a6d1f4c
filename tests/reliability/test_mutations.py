"""The faults that mutation testing puts into modules, and what it makes of the tests' answers.

No backend: it mutates text and reads results.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import signal

import mutate
import mutations
import pytest

SOURCE = '''
LIMIT = 2


def clipped(x, least: int | None = 0, *, loud=False):
    """Clips."""
    if x is None or not loud:
        raise ValueError(f"{x + 1} must be " + "a number")
    record(x)
    return max(x - least, -LIMIT) if x <= least else [1.5 * y for y in x if y]
    return list(zip(x, strict=True))
'''
# What stands in the place of what.
EXPECTED = {
    ("2", "3"),
    ("0", "1"),
    ("False", "True"),
    ("x is None or not loud", "x is None and (not loud)"),
    ("if x is None or not loud:", "if not (x is None or not loud):"),
    ("x is None", "x is not None"),
    ("not loud", "loud"),
    ("raise ValueError(f'{x + 1} must be ' + 'a number')", "pass"),
    ("record(x)", "pass"),
    ("return max(x - least, -LIMIT) if x <= least else [1.5 * y for y in x if y]", "return None"),
    ("return list(zip(x, strict=True))", "return None"),
    ("max", "min"),
    ("x - least", "x + least"),
    ("-LIMIT", "LIMIT"),
    ("x <= least", "x > least"),
    ("x <= least", "x < least"),
    ("1.5 * y", "1.5 / y"),
    ("1.5", "2.25"),
    ("[... for y in x if y]", "[... for y in x if not y]"),
}


def test_each_kind_of_fault_is_found_once_and_annotations_and_messages_are_left():
    found = mutations.mutants("m.py", SOURCE)
    assert {(m.before, m.after) for m in found} == EXPECTED
    assert len(found) == len(EXPECTED)


def test_a_fault_changes_one_place():
    before = ast.unparse(ast.parse(SOURCE))
    for mutant in mutations.mutants("m.py", SOURCE):
        changed = ast.unparse(mutations.apply(mutant, SOURCE))
        compile(changed, "m.py", "exec")
        different = [
            pair for pair in zip(before.splitlines(), changed.splitlines(), strict=True) if len(set(pair)) == 2
        ]
        assert len(different) == 1, mutant.key


def test_keys_name_a_fault_and_outlive_other_changes():
    source = inspect.getsource(mutations)
    keys = [mutant.key for mutant in mutations.mutants("m.py", source)]
    assert len(set(keys)) == len(keys) > 50
    later = mutations.mutants("m.py", "NEW = 3\n\n\n" + source)
    assert set(keys) <= {mutant.key for mutant in later}
    assert mutations.mutants("m.py", "x = 1\nx = 1\n")[1].key == "m.py::module: 1 -> 2 (2)"


@pytest.mark.parametrize("group", mutate.GROUPS)
def test_the_groups_name_modules_and_tests(group):
    for module, arguments in mutate.GROUPS[group].items():
        assert (mutate.ROOT / module).exists(), module
        assert all((mutate.ROOT / name).exists() for name in arguments if name.startswith("tests/")), arguments
    drawn = mutate.drawn(group, 30, seed=0)
    assert drawn == mutate.drawn(group, 20, seed=0) + drawn[20:], "a larger number draws the same and more"
    assert drawn != mutate.drawn(group, 30, seed=1)


def test_a_process_that_a_signal_ends_has_no_answer():
    assert mutate.forked(lambda: [1]) == [1]
    assert mutate.forked(lambda: os.kill(os.getpid(), signal.SIGXCPU), 1) is None


def test_survivors_are_reported_with_their_reasons(tmp_path, monkeypatch):
    first, second = mutate.drawn("update", 2, 0)
    lines = [{"mutant": first.key, "outcome": "survived"}, {"mutant": second.key, "outcome": "killed"}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "reasons.json").write_text(json.dumps({first.key: "Equivalent: why."}))
    monkeypatch.setattr(mutate, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(mutate, "REASONS", tmp_path / "reasons.json")
    table = mutate.report(2, 0)
    assert "| 2 | 2 | 1 (50.0 %) | 1 | 100.0 % |" in table
    assert "| Equivalent: why. |" in table


def test_every_survivor_has_a_reason():
    known = mutate.results()
    survivors = {key for key, line in known.items() if line["outcome"] == "survived"}
    reasons = json.loads(mutate.REASONS.read_text())
    assert survivors == set(reasons), "list each fault that no test notices, with the reason, or write a test"
