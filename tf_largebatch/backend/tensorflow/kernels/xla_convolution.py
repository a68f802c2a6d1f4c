"""XLA's general convolution and its barrier, which no public TensorFlow op offers and the forms for TPUs need.

The ops belong to TensorFlow's bridge to XLA (tensorflow/compiler/tf2xla). They exist in compiled functions only, as
everything is on a TPU.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.compiler.xla import xla_data_pb2


def row_contributions(a: tf.Tensor, d: tf.Tensor, padding: list[int], stride: int, dilation: int) -> tf.Tensor:
    """Returns `G_i[o, c, p] = sum_{r,w} a[i, stride r + dilation o, w, c] d[i, r, w, p]`, a product for every example.

    It is one convolution in which the rows slide and the columns w are contracted. XLA's convolutions have no batch
    axis that both operands share, so the examples are an axis that slides too: the B examples of `a` are set B apart
    and those of `d` laid over them in steps of B - 1, so that at step i only example i meets itself. XLA writes batched
    products for the TPU in this way, and the compiler knows the pattern and multiplies nothing else.

    Args:
        a: [B, H, W, C].
        d: [B, R, W, P], of the same dtype.
        padding: Rows of zeros before and after `a`, may be negative; they fix the number K of offsets o.
        stride: Of the convolution whose kernel's gradient this is.
        dilation: Of the convolution whose kernel's gradient this is.

    Returns:
        float32, shape [B, K, C, P].
    """
    batch = a.shape[0]
    numbers = xla_data_pb2.ConvolutionDimensionNumbers(
        input_spatial_dimensions=[0, 1],  # a: examples, rows, columns, channels; the channels go as a batch
        input_feature_dimension=2,
        input_batch_dimension=3,
        kernel_spatial_dimensions=[0, 1],  # d: examples, rows, columns, outputs
        kernel_input_feature_dimension=2,
        kernel_output_feature_dimension=3,
        output_spatial_dimensions=[0, 1],
        output_batch_dimension=2,
        output_feature_dimension=3,
    )
    return gen_xla_ops.xla_conv_v2(
        a,
        d,
        window_strides=[max(batch - 1, 1), dilation],
        padding=[[0, 0], padding],
        lhs_dilation=[batch, 1],
        rhs_dilation=[1, stride],
        feature_group_count=1,
        batch_group_count=1,
        dimension_numbers=numbers.SerializeToString(),
        precision_config="",
        preferred_element_type=tf.float32,
    )


def kept_apart(*tensors: tf.Tensor) -> list[tf.Tensor]:
    """Returns the tensors behind a barrier: the compiler computes all of them before anything made of them."""
    return gen_xla_ops.xla_optimization_barrier(list(tensors))
