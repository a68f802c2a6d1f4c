"""The documentation site: `make docs`. Pages are Markdown; the API reference comes from the docstrings."""

from __future__ import annotations

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(pathlib.Path(__file__).parent / "_ext")]

from tf_largebatch.version import __version__  # noqa: E402  (found on the path set above)

project = "tf_largebatch"
author = "The tf_largebatch authors"
version = release = __version__

# Sphinx with MyST is what JAX, Flax, Optax and Orbax use today. (MkDocs, which some JAX projects use, gets no more
# releases.)
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "markdown_docstrings",
    "config_table",
    "flag_table",
    "public_api",
    "source_api",
    "layer_table",
    "measured_tables",
    "mathml",
]
exclude_patterns = ["_ext"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_update_mathjax = False
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"tf_largebatch {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["copy.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
# No web fonts, no scripts from elsewhere: readers' privacy, and machines without a network.
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
