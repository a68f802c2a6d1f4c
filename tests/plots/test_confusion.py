"""The picture of a confusion matrix."""

from __future__ import annotations

import numpy as np
import pytest
from picture_texts import overlapping

from tf_largebatch.plots import confusion


@pytest.mark.parametrize("names", [("cats", "dogs"), list(map(str, range(12)))], ids=len)
def test_no_text_overlaps_another_or_leaves_the_picture(names, monkeypatch):
    drawn = []
    monkeypatch.setattr(confusion, "save", lambda figure, path: drawn.append(figure))
    matrix = np.arange(len(names) ** 2).reshape(len(names), -1)
    confusion.plot_confusion(matrix, names, "", "runs/photographs_of_animals/resnet20_20261127, test images")
    assert not overlapping(drawn[0])
    assert "accuracy" in drawn[0].axes[0].get_title()
