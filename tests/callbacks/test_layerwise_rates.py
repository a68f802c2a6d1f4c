"""The CSV file of the layer-wise rates."""

from __future__ import annotations

import pytest
from paper_settings import paper
from small_fits import fit, small_model

from tf_largebatch import LARS
from tf_largebatch.callbacks import LayerwiseRateRecorder
from tf_largebatch.callbacks.layerwise_rates import read_layerwise_rates


@pytest.mark.parametrize(("every", "updates"), [("epoch", [3, 6]), (2, [1, 2, 4, 6]), (1, [1, 2, 3, 4, 5, 6])])
def test_layerwise_rates_are_recorded(every, updates, tmp_path):
    optimizer = paper(LARS, 0.1)
    fit(small_model(optimizer), callbacks=[LayerwiseRateRecorder(tmp_path / "rates.csv", every)])
    records = read_layerwise_rates(tmp_path / "rates.csv")
    assert [update for update, name, *_ in records if name.endswith("d/kernel")] == updates
    kernel, bias = optimizer.layerwise_rates()
    assert records[-2][1:] == (kernel, optimizer.layerwise_rates()[kernel], optimizer.gradient_norms()[kernel])
    assert records[-1][1:] == (bias, "", "")
    assert optimizer.adapted_tensors() == [kernel]


def test_a_record_cut_short_is_left_out(tmp_path):
    fit(small_model(paper(LARS, 0.1)), callbacks=[LayerwiseRateRecorder(tmp_path / "rates.csv")])
    whole = read_layerwise_rates(tmp_path / "rates.csv")
    with open(tmp_path / "rates.csv", "a") as file:
        file.write("7,d/kern")
    assert read_layerwise_rates(tmp_path / "rates.csv") == whole


def test_recorders_refuse_what_they_cannot_record(tmp_path):
    with pytest.raises(ValueError, match="must be a positive integer or 'epoch'; received every=0"):
        LayerwiseRateRecorder(tmp_path / "rates.csv", 0)
    with pytest.raises(ValueError, match=r"(?i)optimizer must be one with layer-wise rates; received optimizer='sgd"):
        fit(small_model("sgd"), callbacks=[LayerwiseRateRecorder(tmp_path / "rates.csv")])
