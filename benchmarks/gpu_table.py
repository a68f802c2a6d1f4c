"""The tables of a report of benchmarks.gpu; without JAX, so that every environment can write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {
    "resnet50": "ResNet-50, 224 px, batch 256, bfloat16",
    "resnet20": "ResNet-20, 32 px, batch 4096, bfloat16",
    "vit_s": "ViT-S/16, 224 px, batch 256, bfloat16",
    "mobilenetv2": "MobileNetV2, 224 px, batch 256, bfloat16",
    "densenet121": "DenseNet121, 224 px, batch 128, bfloat16",
    "conadv": "ConAdv, ResNet-20, 2048 + 2048 images, bfloat16",
    "conadv_small": "ConAdv, ResNet-20, 128 + 128 images, bfloat16",
    "resnet50_float32": "ResNet-50, 224 px, batch 256, float32",
    "tensorflow_resnet50": "TensorFlow: ResNet-50, 224 px, batch 256, bfloat16",
    "tensorflow_resnet20": "TensorFlow: ResNet-20, 32 px, batch 4096, bfloat16",
}
UPDATES = {"update": "25.6 million parameters", "tensorflow_update": "the same on TensorFlow"}


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a report, that of whole steps first."""
    if not report:
        return "Not run on a GPU yet."
    lines = [
        "| step | plain, ms | all examples, ratio (quartiles) | memory | an eighth, ratio (quartiles) | memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        row = report["cases"].get(name, {})
        if "exact_ratio" in row:
            cells = [f"{row['plain_ms']:.1f}"]
            for kind in ("exact", "sampled"):
                cells += [_ratio(row, f"{kind}_ratio"), f"{row[f'{kind}_memory_ratio']:.2f}"]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    attacks = [name for name in TITLES if "concurrent_ratio" in report["cases"].get(name, {})]
    if attacks:
        lines += ["", "| step | no attack, ms | concurrent, ratio (quartiles) | sequential, ratio (quartiles) |"]
        lines.append("|---|---|---|---|")
    for name in attacks:
        row = report["cases"][name]
        cells = [f"{row['plain_ms']:.2f}", _ratio(row, "concurrent_ratio"), _ratio(row, "sequential_ratio")]
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    updates = [name for name in UPDATES if name in report["cases"]]
    if updates:
        lines += ["", "| update | SGD, ms | CLARS, ratio (quartiles) | Lamb, ratio (quartiles) |", "|---|---|---|---|"]
    for name in updates:
        row = report["cases"][name]
        cells = [f"{row['SGD_ms']:.3f}", _ratio(row, "CLARS_ratio"), _ratio(row, "Lamb_ratio")]
        lines.append(f"| {UPDATES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_quartiles"]
    return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"
