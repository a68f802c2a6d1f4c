"""What JAX alone has is tested where Keras runs on it: `KERAS_BACKEND=jax pytest tests/backend/jax`.

JAX only: it tests kernels in JAX.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("KERAS_BACKEND") == "jax" else ["*"]
