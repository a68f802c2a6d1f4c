"""How long an epoch of ResNet-50 on ImageNet would take on 8 to 1,024 chips, on paper: nothing here was run.

    python -m benchmarks.scaling_estimate --json=benchmarks/reports/scaling_estimate.json

A step is given two times: the larger of compute and memory, which no program reaches, with the all-reduce hidden behind
it as far as it goes, and with none of it hidden.

    compute      flops of an image * images of a chip / peak flops
    memory       (bytes of an image * images of a chip + bytes of an update) / memory bandwidth
    all-reduce   2 (n - 1) / n * bytes of gradients and norms / bandwidth between chips      (a ring, no latency)

    from         max(compute, memory, all-reduce)
    to           max(compute, memory) + all-reduce

Assumptions, each a constant below: the chip is TPU v5e with its published peaks; flops and bytes are what the TPU
compiler counts for steps of 96 and 192 images at 224 px in mixed bfloat16 (reports/tpu_compile.json), a part of them
in proportion to the images and a part for each update; gradients are summed in float32; a step is as fast in
micro-batches; reading and augmenting images takes no time. An epoch is 1,281,167 images, whole steps or not. A slice of
v5e has 256 chips at most: 512 and 1,024 stand for several, as if the network between them were as fast as that within.
"""

from __future__ import annotations

from typing import Any

from absl import app, flags

from benchmarks import harness

FLAGS = flags.FLAGS

IMAGES = 1_281_167  # ImageNet's training images
NUMBERS = 25_583_592 + 214  # trainable parameters, and a norm for each tensor
GRADIENT_BYTES = 4 * NUMBERS  # float32
PEAK_FLOPS = 197e12  # a v5e chip, bfloat16
MEMORY_BYTES_A_SECOND = 819e9
# 1,600 Gbit/s out of a chip over all its links; a ring uses one link in each direction of a two-dimensional torus.
CHIP_TO_CHIP_BYTES_A_SECOND = 1600e9 / 8 / 2

BATCHES = (4096, 8192, 16384, 32768, 65536, 98304)
CHIPS = (8, 32, 128, 256, 512, 1024)


def compiled(case: str) -> dict[str, Any]:
    """A compiled step of benchmarks/reports/tpu_compile.json."""
    return harness.read_report(harness.REPORTS / "tpu_compile.json")["cases"][case]


def bytes_of_an_update() -> float:
    """Bytes that a step moves whatever its images: what the step of 96 has too many for half of that of 192."""
    return 2 * compiled("plain")["bytes_accessed"] - compiled("plain_twice")["bytes_accessed"]


def of_an_image(case: str) -> tuple[float, float]:
    """Flops and bytes of one image."""
    found = compiled(case)
    return found["flops"] / found["batch"], (found["bytes_accessed"] - bytes_of_an_update()) / found["batch"]


def step_times(batch: int, chips: int, flops: float, memory: float) -> tuple[float, float, float]:
    """Seconds of a step for compute, memory and all-reduce; `flops` and `memory` are those of an image."""
    share = batch / chips
    return (
        flops * share / PEAK_FLOPS,
        (memory * share + bytes_of_an_update()) / MEMORY_BYTES_A_SECOND,
        all_reduced_bytes(chips) / CHIP_TO_CHIP_BYTES_A_SECOND,
    )


def all_reduced_bytes(chips: int) -> float:
    """What a chip sends in the all-reduce of a step."""
    return 2 * (chips - 1) / chips * GRADIENT_BYTES


def epochs(case: str) -> dict[str, dict[str, str]]:
    """Seconds of an epoch, from and to, for all batches on all numbers of chips that divide them."""
    flops, memory = of_an_image(case)
    table: dict[str, dict[str, str]] = {}
    for batch in BATCHES:
        row = table[f"{batch:,} images"] = {}
        for chips in CHIPS:
            compute, moving, all_reduce = step_times(batch, chips, flops, memory)
            least = IMAGES / batch * max(compute, moving, all_reduce)
            most = IMAGES / batch * (max(compute, moving) + all_reduce)
            row[f"{chips:,} chips"] = "-" if batch % chips else f"{least:.2f} to {most:.2f} s"
    return table


def all_reduce_volume() -> dict[str, dict[str, str]]:
    """Gigabytes that a chip sends in an epoch."""
    return {
        f"{batch:,} images": {
            f"{chips:,} chips": f"{IMAGES / batch * all_reduced_bytes(chips) / 1e9:.1f} GB" for chips in CHIPS
        }
        for batch in BATCHES
    }


def assumptions(cases: list[str]) -> dict[str, dict[str, Any]]:
    """Every number that goes in, and where it is from."""
    named = {
        "images of an epoch": (IMAGES, "ImageNet's training set; whole steps or not"),
        "bytes of gradients and norms": (GRADIENT_BYTES, "25,583,592 parameters and 214 norms in float32"),
        "flops a second of a chip": (PEAK_FLOPS, "TPU v5e's published peak, bfloat16"),
        "memory bytes a second of a chip": (MEMORY_BYTES_A_SECOND, "TPU v5e, published"),
        "bytes of an update": (bytes_of_an_update(), "TPU compiler's, from steps of 96 and 192 images"),
        "bytes a second from chip to chip": (CHIP_TO_CHIP_BYTES_A_SECOND, "half of the published 1,600 Gbit/s"),
    }
    for case in cases:
        flops, memory = of_an_image(case)
        named[f"flops of an image, {case}"] = (flops, "TPU compiler's, from 96 images")
        named[f"bytes of an image, {case}"] = (memory, "TPU compiler's, from 96 images")
    return {name: {"value": f"{value:.4g}", "source": source} for name, (value, source) in named.items()}


def main(argv: list[str]) -> None:
    """Prints the tables and writes JSON."""
    del argv
    report = {
        "assumptions": assumptions(FLAGS.cases),
        **{f"epoch, {case}": epochs(case) for case in FLAGS.cases},
        "sent by a chip in an epoch": all_reduce_volume(),
    }
    for title, table in report.items():
        print(title)
        for label, row in table.items():
            print(f"{label:>36}" + "".join(f"{value!s:>20}" for value in row.values()))
    harness.write_report(FLAGS.json, report)


if __name__ == "__main__":
    flags.DEFINE_list("cases", ["plain", "clars", "conadv_clars"], "Of benchmarks/tpu_compile.py.")
    flags.DEFINE_string("json", None, "Where to write the report.")
    app.run(main)
