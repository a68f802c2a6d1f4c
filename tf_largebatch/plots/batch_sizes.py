"""The picture of `python -m tf_largebatch.batch_size`: the noise scale of a short run, and what batches cost."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from tf_largebatch.plots import style


def plot_batch_sizes(
    path: str | os.PathLike[str],
    updates: Sequence[int],
    noise_scales: Sequence[float],
    batch_sizes: Sequence[int],
    noise_scale: float,
    fits: int | None = None,
    chosen: int | None = None,
    title: str = "",
) -> None:
    """Draws the noise scale over the updates of a short run, and the cost of training by batch size.

    Args:
        path: The PNG file; it appears whole or not at all.
        updates: Numbers of the updates at which the noise scale was read.
        noise_scales: The noise scale there, in examples; those that are not finite are left out.
        batch_sizes: Batch sizes to draw the cost of, ascending.
        noise_scale: The noise scale that the cost follows from; inf or NaN to leave out the right part.
        fits: The largest batch that fits into memory at once, to mark.
        chosen: The batch size that is advised, to mark.
        title: What was trained, for the title.
    """
    known = [(u, v) for u, v in zip(updates, noise_scales, strict=True) if math.isfinite(v) and v > 0]
    has_cost = math.isfinite(noise_scale) and noise_scale > 0
    with style.settings():
        figure = style.new_figure(15 if has_cost else 8, 5.2)
        axes = figure.subplots(1, 2 if has_cost else 1, squeeze=False)[0]
        left = axes[0]
        left.plot(*zip(*known, strict=True) if known else ([], []), color=style.COLOURS[0], **style.marks(len(known)))
        if known:
            style.choose_scale(left, [v for _, v in known])
        else:
            left.set_yticks([])
            left.text(0.5, 0.5, "beyond measure", transform=left.transAxes, ha="center", va="center")
        left.set_xlim(0, updates[-1] + 1 if updates else 1)
        left.set_title(f"Gradient noise scale{title and ': '}{title}")
        left.set_xlabel("update")
        left.set_ylabel("examples")
        left.grid(alpha=0.25)
        if has_cost:
            right = axes[1]
            sizes = list(batch_sizes)
            of_updates = [1 + noise_scale / size for size in sizes]
            of_examples = [1 + size / noise_scale for size in sizes]
            look = {"markersize": 5, "linewidth": 2}
            right.plot(sizes, of_updates, "o-", color=style.COLOURS[0], label="updates", **look)
            right.plot(sizes, of_examples, "s--", color=style.COLOURS[1], label="examples", **look)
            right.set_xscale("log", base=2)
            right.set_yscale("log", base=2)
            for axis in (right.xaxis, right.yaxis):
                axis.set_major_formatter("{x:,.0f}")
            for value, text, line in (
                (noise_scale, "noise scale", ":"),
                (fits, "fits at once", "-."),
                (chosen, "advised", "-"),
            ):
                # Where all sizes fit there is nothing to mark.
                if (
                    value is not None
                    and sizes[0] <= value <= sizes[-1]
                    and (value != sizes[-1] or text != "fits at once")
                ):
                    right.axvline(value, color=style.GREY, ls=line, lw=1.5, label=f"{text}, {_short(value)}")
            right.set_title("What training takes, by batch size")
            right.set_xlabel("examples of an update")
            right.set_ylabel("times the fewest possible")
            right.grid(alpha=0.25)
            right.legend(frameon=False, fontsize=11)
        style.save(figure, path)


def _short(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}" if value != int(value) else f"{int(value):,}"
