"""How long an epoch of ResNet-50 on ImageNet would take on 8 to 1,024 chips, on paper: nothing here was run.

    python -m benchmarks.scaling_estimate --json=benchmarks/scaling_estimate.json

A step's time is the largest of three, as if they overlapped perfectly, and each at its peak: a bound from below, which
no program reaches.

    compute      flops an image * images a chip / peak flops
    memory       bytes an image * images a chip / memory bandwidth
    all-reduce   2 (n - 1) / n * bytes of gradients and norms / bandwidth between chips      (a ring)

Assumptions, each a constant below: the chip is TPU v5e with its published peaks; flops and bytes an image are what the
TPU compiler counts for a step of 96 images at 224 px in mixed bfloat16 (benchmarks/tpu_compile.json) and grow in
proportion to the images, also down to 4 images a chip; gradients are summed in float32; a step is as fast in
micro-batches; reading and augmenting images takes no time. An epoch is 1,281,167 images, whole steps or not. A slice of
v5e has 256 chips at most: 512 and 1,024 stand for several, as if the network between them were as fast as that within.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from absl import app, flags

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


def of_an_image(case: str) -> tuple[float, float]:
    """Flops and bytes of one image in a compiled step of benchmarks/tpu_compile.json."""
    path = pathlib.Path(__file__).with_name("tpu_compile.json")
    found = json.loads(path.read_text())["cases"][case]
    return found["flops"] / found["batch"], found["bytes_accessed"] / found["batch"]


def step(batch: int, chips: int, flops: float, memory: float) -> dict[str, Any] | None:
    """The three times of a step and what bounds it; None if the chips get no whole images each."""
    if batch % chips:
        return None
    share = batch // chips
    times = {
        "compute": flops * share / PEAK_FLOPS,
        "memory": memory * share / MEMORY_BYTES_A_SECOND,
        "all-reduce": 2 * (chips - 1) / chips * GRADIENT_BYTES / CHIP_TO_CHIP_BYTES_A_SECOND,
    }
    bound = max(times, key=times.__getitem__)
    return {
        "batch": batch,
        "chips": chips,
        "images_a_chip": share,
        "steps": IMAGES / batch,
        "seconds": times,
        "bound": bound,
        "epoch_seconds": IMAGES / batch * times[bound],
        "all_reduced_bytes": math.ceil(IMAGES / batch * 2 * (chips - 1) / chips * GRADIENT_BYTES),
    }


def estimate(case: str) -> list[dict[str, Any]]:
    """All batches on all numbers of chips."""
    flops, memory = of_an_image(case)
    found = (step(batch, chips, flops, memory) for batch in BATCHES for chips in CHIPS)
    return [row for row in found if row is not None]


def main(argv: list[str]) -> None:
    """Prints the tables and writes JSON."""
    del argv
    report = {case: estimate(case) for case in FLAGS.cases}
    for case, rows in report.items():
        print(f"{case}: seconds an epoch, at least, and what bounds them")
        print(f"{'batch':>8}" + "".join(f"{chips:>17}" for chips in CHIPS) + "  chips")
        for batch in BATCHES:
            cells = {
                row["chips"]: f"{row['epoch_seconds']:.2f} {row['bound']}" for row in rows if row["batch"] == batch
            }
            print(f"{batch:8}" + "".join(f"{cells.get(chips, '-'):>17}" for chips in CHIPS))
    if FLAGS.json:
        pathlib.Path(FLAGS.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("cases", ["plain", "clars", "clars_sampled"], "Of benchmarks/tpu_compile.py.")
    flags.DEFINE_string("json", None, "Where to write the report.")
    app.run(main)
