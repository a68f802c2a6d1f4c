"""The gradient tape, TensorFlow's kernels, loops and replicas."""
