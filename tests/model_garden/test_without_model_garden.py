"""What is imported and what is said without Model Garden."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tf_keras_environment import import_hidden


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.long
def test_the_package_imports_neither_tf_keras_nor_model_garden():
    code = "import sys, tf_largebatch; print([m for m in ('tf_keras', 'official') if m in sys.modules])"
    assert run_python(code).stdout.strip().splitlines()[-1] == "[]"


def test_one_sentence_says_what_to_install():
    message = import_hidden("tf_largebatch.model_garden", "tf_keras", "official")
    assert message.startswith("tf_largebatch.model_garden needs TensorFlow Model Garden, and tf_keras and official")
    assert "pip install '.[garden]'" in message
