# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Sphinx settings. No intersphinx: the documentation builds without a network.

Pages whose front matter names a kernel are run, so that what they show is what the code prints.
"""

import hashlib
import os
import sysconfig
from pathlib import Path

import pyro_flows

project = "pyro_flows"
author = "pyro_flows contributors"
project_copyright = author
version = release = pyro_flows.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# A page's outputs are kept until the page changes or the package does: the name of the folder
# is that of the sources. A fresh clone has none, and runs every page.
PACKAGE = Path(pyro_flows.__file__).parent
SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(PACKAGE.rglob("*.py"))))
nb_execution_mode = "cache"
nb_execution_cache_path = str(
    Path(__file__).parent / "_build" / "outputs" / SOURCES.hexdigest()[:16]
)
nb_execution_in_temp = True  # files that a page writes are no part of the documentation
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "error"  # nothing is shown there that a page doesn't mean to show
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where `pyro-flows` is, whether this environment is activated or not.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
# ArviZ 0.23 says once a day that ArviZ 1.x is there; what a page shows mustn't hang on that.
os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning:arviz,ignore:IProgress not found"

# Only our own docstrings: those inherited from Pyro and torch are written in another markup.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"pyro_flows {release}"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
