"""Settings of the documentation: sphinx, MyST notebooks, furo."""

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # figures in the pages
# The kernels that execute the pages import the same checkout.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

import ssmkit

# Notebooks live beside the docs; sphinx reads only below its own folder.
(HERE / "generated").mkdir(exist_ok=True)
for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
    shutil.copy(notebook, HERE / "generated" / notebook.name)

project = "ssmkit"
author = "The ssmkit authors"
copyright = f"2026, {author}"
version = release = ssmkit.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "tex_brackets",
    "public_names",
]
exclude_patterns = ["_build", "README.md", "examples", "extensions"]
suppress_warnings = ["mystnb.unknown_mime_type"]  # tables also come as plain text

html_theme = "furo"
html_title = f"ssmkit {version}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"  # progress bars

# Single backticks in docstrings name objects of the package.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and units, which say more
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False

# Whose public names must be documented.
public_modules = [
    "ssmkit",
    "ssmkit.data",
    "ssmkit.errors",
    "ssmkit.learned",
    "ssmkit.models",
    "ssmkit.objectives",
    "ssmkit.plots",
    "ssmkit.smc",
]
