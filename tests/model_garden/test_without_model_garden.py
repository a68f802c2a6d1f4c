"""What is imported and what is said without Model Garden."""

from __future__ import annotations

import subprocess
import sys


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_package_imports_neither_tf_keras_nor_model_garden():
    code = "import sys, tf_largebatch; print([m for m in ('tf_keras', 'official') if m in sys.modules])"
    assert run_python(code).stdout.strip().splitlines()[-1] == "[]"


def test_garden_says_in_one_sentence_what_to_install():
    hidden = (
        "import importlib.util as u; found = u.find_spec; "
        "u.find_spec = lambda name, *rest: None if name in ('tf_keras', 'official') else found(name, *rest); "
        "import tf_largebatch.model_garden"
    )
    result = run_python(hidden)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tf_largebatch.model_garden needs TensorFlow Model Garden")
    assert "pip install '.[garden]'" in last
