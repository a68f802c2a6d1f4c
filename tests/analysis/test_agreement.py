"""The agreement of the examples' gradients: 1 for equal examples, 1 / sqrt(B) for orthogonal ones."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from paper_settings import paper

from tf_largebatch import CLARS, LargeBatchModel, analysis


def trained(x, y, epochs=2):
    network = keras.Sequential([keras.Input((x.shape[1],)), keras.layers.Dense(1, use_bias=False, name="dense")])
    network.layers[0].set_weights([np.ones((x.shape[1], 1), "float32")])
    model = LargeBatchModel(network)
    model.compile(paper(CLARS, 0.1, eta=0.01, gradient_norms="per_example"), "mean_squared_error")
    recorder = analysis.AgreementRecorder(every=1)
    model.fit(x, y, batch_size=len(x), epochs=epochs, verbose=0, callbacks=[recorder])
    return recorder


def test_equal_examples_agree_and_orthogonal_ones_do_not(tmp_path):
    equal = trained(np.ones((4, 4), "float32"), np.zeros((4, 1), "float32"))
    assert equal.updates == [1, 2]
    (values,) = equal.agreements.values()
    np.testing.assert_allclose(values, 1.0, rtol=1e-5)
    orthogonal = trained(np.eye(4, dtype="float32"), np.zeros((4, 1), "float32"))
    (values,) = orthogonal.agreements.values()
    np.testing.assert_allclose(values, 0.5, rtol=1e-5)
    assert analysis.variance_factor(values[0]) == pytest.approx(4.0, rel=1e-4)  # the batch size
    figure = analysis.plot_agreement(orthogonal, batch_size=4)
    figure.savefig(tmp_path / "agreement.png")
    assert len(figure.axes[0].lines) == 2
