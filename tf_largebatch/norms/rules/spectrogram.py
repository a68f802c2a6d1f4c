"""STFTSpectrogram: the real and the imaginary part are strided convolutions of every channel with one kernel each."""

from __future__ import annotations

from typing import Any

from keras import ops

from tf_largebatch.keras_internals import stft_convolution, stft_frame_step
from tf_largebatch.norms.recorder import Recorder
from tf_largebatch.norms.rules.combinators import WithoutFirstAxis
from tf_largebatch.norms.rules.convolution import Convolution, Window
from tf_largebatch.norms.view import view


def stft_spectrogram(layer: Any, recorder: Recorder, inputs: Any) -> Any:
    """Runs the layer's own `call` and records its convolutions `y[c] = conv(x[c], W)`, `W` [frame, 1, frequencies]."""

    def recorded_convolution(inputs: Any, kernel: Any) -> Any:
        y = stft_convolution(layer, inputs, recorder.value(kernel))  # [B, channels, frequencies, frames]
        by_channel = ops.transpose(inputs, [0, 2, 1]) if layer.data_format == "channels_last" else inputs
        window = Window((1, layer.frame_length), (1, stft_frame_step(layer)), layer.padding, (1, 1))
        contraction = WithoutFirstAxis(Convolution(by_channel[..., None], window, groups=1))
        recorded = recorder.record(kernel, ops.transpose(y, [0, 1, 3, 2]), contraction)
        return ops.transpose(recorded, [0, 1, 3, 2])

    return type(layer).call(view(layer, _apply_conv=recorded_convolution), inputs)
