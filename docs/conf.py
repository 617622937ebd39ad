"""Sphinx configuration; build with ``scripts/check.sh docs``.  Nothing is fetched."""

from __future__ import annotations

import warnings
from importlib.metadata import metadata

# an extension's own use of an older interface of Sphinx
warnings.filterwarnings("ignore", message=".*set_application", module="sphinx_autodoc_typehints")

info = metadata("vxpress")
project = info["Name"]
author = "The vxpress developers"
copyright = f"2026, {author}"
release = version = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "tutorials/README.md"]
suppress_warnings = [
    # types that other packages import for type checkers only
    "sphinx_autodoc_typehints.forward_reference",
    "sphinx_autodoc_typehints.guarded_import",
]

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints writes them
typehints_defaults = "braces"
always_use_bars_union = True
napoleon_google_docstring = False
napoleon_use_rtype = True
napoleon_use_param = True

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# tutorials are committed with their outputs; scripts/check.sh notebooks runs them
nb_execution_mode = "off"
nb_merge_streams = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}
