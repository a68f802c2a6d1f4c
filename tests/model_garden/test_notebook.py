"""The notebook of Model Garden runs from top to bottom in SMALL mode; the other notebooks: tests/colab."""

from __future__ import annotations

import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "colab"))

from notebooks import GARDEN, execute_small, printed


@pytest.mark.long
def test_the_notebook_trains_on_the_digits(tmp_path):
    said = printed(execute_small(GARDEN, tmp_path))
    assert re.search(r"clars_resnet_imagenet +65536 +32\.8 +0 +1759", said), said
    # One learning rate in ten classes: a dozen updates need not be better than chance, but they are an evaluation.
    assert re.search(r"eval \| step: +12(.|\n)*'accuracy': [^\n]*\d\.\d+", said), said
    assert "--experiment=clars_resnet_imagenet" in said and "runtime.distribution_strategy=tpu" in said
