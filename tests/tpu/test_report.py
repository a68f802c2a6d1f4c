"""What is read out of a compiled program's text, and the table made of it; no compiler is needed.

No backend: it reads the text of compiled programs.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness, tpu_compile, tpu_compiler

BENCHMARKS = Path(tpu_compile.__file__).parent


def _compiled(hlo, collectives=()):
    return tpu_compiler.Compiled(
        device_kind="TPU v5 lite",
        compiler="",
        flops=1.0,
        bytes_accessed=1.0,
        temporary_bytes=1,
        argument_bytes=1,
        peak_bytes=1,
        collectives=tuple(collectives),
        hlo=hlo,
    )


def test_bytes_of_collectives():
    lines = [
        "%all-reduce.1 = (f32[3,3,64,64]{3,2,1,0:T(8,128)}, bf16[10]{0:T(256)(2,1)}, pred[]) all-reduce(%a, %b, %c)",
        "ROOT %all-reduce-start = f32[161]{0:T(256)} all-reduce-start(%d), to_apply=%add.f32[7]",
    ]
    assert _compiled("", lines).collective_bytes() == 4 * 9 * 64 * 64 + 2 * 10 + 1 + 4 * 161


def test_cycles_leave_out_what_has_no_estimate():
    hlo = '{"estimated_cycles":"120"}\n{"estimated_cycles":"4611686018427387903"}\n{"estimated_cycles":"3"}'
    assert _compiled(hlo).estimated_cycles() == 123


def test_calls_to_the_host_and_dynamic_shapes_are_found():
    hlo = "%x = f32[2] add(%a, %b)\n%y = token[] outfeed(%x)\n%z = f32[<=8,2] add(%c, %d)"
    assert _compiled(hlo).host_calls() == ["%y = token[] outfeed(%x)"]
    assert _compiled(hlo).dynamic_shapes() == ["%z = f32[<=8,2] add(%c, %d)"]


def test_the_readme_has_the_table_of_the_report():
    report = harness.read_report(harness.REPORTS / "tpu_compile.json")
    table = tpu_compile.markdown(report)
    assert len(table.splitlines()) == 2 + len(report["cases"])
    assert table in (BENCHMARKS / "README.md").read_text()
    for name, case in report["cases"].items():
        assert case["host_calls"] == 0, name
        assert case["peak_bytes"] < 16 * 2**30, name  # the memory of a v5e
        if name.startswith("jax_pod"):  # a program for 256 chips, which is compared with none
            continue
        # Without micro-batches no loop, whose body the compiler would count once.
        assert (case["loops"] == 0) == (case["micro_batch_size"] is None), name
