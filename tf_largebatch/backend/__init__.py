"""What differs between Keras's backends: files of the same name in `tensorflow/` and `jax/` do the same job.

All other modules compute with `keras.ops`. They reach a backend's files through one module each, which imports from
the backend in use: `norms/measure.py`, `norms/kernels.py`, and so on.
"""
