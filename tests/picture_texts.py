"""The texts of a Matplotlib figure, for the tests of pictures."""

from __future__ import annotations


def overlapping(figure):
    """Returns the pairs of titles, labels and legends' texts that overlap, and the texts outside the picture."""
    figure.canvas.draw()
    boxes = []
    for axis in figure.axes:
        texts = [axis.title, axis.xaxis.label, axis.yaxis.label]
        for one in (axis.xaxis, axis.yaxis):
            low, high = sorted(one.get_view_interval())
            texts += [tick.label1 for tick in one.get_major_ticks() if low <= tick.get_loc() <= high]
        texts += [] if axis.get_legend() is None else axis.get_legend().get_texts()
        boxes += [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text() and t.get_visible()]
    boxes += [(t.get_text(), t.get_window_extent()) for legend in figure.legends for t in legend.get_texts()]
    width, height = figure.canvas.get_width_height()
    outside = [text for text, box in boxes if box.x0 < 0 or box.x1 > width or box.y0 < 0 or box.y1 > height]
    pairs = [
        (a, b) for i, (a, one) in enumerate(boxes) for b, other in boxes[:i] if one.shrunk(0.9, 0.8).overlaps(other)
    ]
    return outside + pairs
