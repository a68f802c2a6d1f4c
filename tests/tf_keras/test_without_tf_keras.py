"""What is imported and what is said without tf_keras, and that Model Garden is not needed for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tf_keras_environment import import_hidden, missing


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_one_sentence_says_what_to_install():
    message = import_hidden("tf_largebatch.tf_keras", "tf_keras")
    assert message.startswith("tf_largebatch.tf_keras needs tf_keras")
    assert "pip install '.[garden]'" in message


@pytest.mark.skipif(bool(missing("tf_keras")), reason="tf_keras is not installed")
def test_model_garden_is_not_needed():
    code = "import sys; sys.modules['official'] = None; import tf_largebatch.tf_keras.norms; print('imported')"
    result = run_python(code)
    assert result.stdout.strip().endswith("imported"), result.stderr[-500:]
