"""Sphinx configuration; build with ``scripts/check.sh docs``.

The build works with and without a network.  Links to other packages come from their own inventories where these can be
fetched, and from the short ones in ``docs/inventories`` otherwise; formulas are drawn by a MathJax that is copied into
the pages.
"""

from __future__ import annotations

import base64
import inspect
import json
import shutil
import warnings
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError
from sphinx.ext.napoleon import NumpyDocstring

# an extension's own use of an older interface of Sphinx
warnings.filterwarnings(
    "ignore", message=".*set_application", module="sphinx_autodoc_typehints"
)

info = metadata("vxpress")
project = info["Name"]
author = "The vxpress developers"
copyright = f"2026, {author}"
release = version = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
]
exclude_patterns = [
    "_build",
    "_templates",
    "**.ipynb_checkpoints",
    "inventories",
    "tutorials/README.md",
]
suppress_warnings = [
    "config.cache",  # the formatter of type hints is a function
    # types that other packages import for type checkers only
    "sphinx_autodoc_typehints.forward_reference",
    "sphinx_autodoc_typehints.guarded_import",
]

autosummary_generate = True
# on some file systems these names are the same
autosummary_filename_map = {"vxpress.extend.elbo": "vxpress.extend.elbo_function"}
templates_path = ["_templates"]  # titles without the name of the package
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints writes them
typehints_defaults = "braces"
always_use_bars_union = True
napoleon_google_docstring = False
napoleon_use_rtype = True
napoleon_use_param = True
default_role = "literal"  # names in single backticks

# the site of each package, and what is linked where its own inventory cannot be fetched
_sites = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "mudata": "https://mudata.readthedocs.io/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "sklearn": "https://scikit-learn.org/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
intersphinx_mapping = {
    name: (site, (None, f"inventories/{name}.txt")) for name, site in _sites.items()
}
intersphinx_timeout = 5
intersphinx_disabled_reftypes = ["std:*"]

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# tutorials are committed with their outputs; scripts/check.sh notebooks runs them
nb_execution_mode = "off"
nb_merge_streams = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# which figure of a tutorial its card shows, counted from 0; the first, unless it is named here
_thumbnails = {"ask_the_model": 1, "generate_cells": 1, "posterior_collapse": 5}

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}

mathjax_path = "mathjax/tex-chtml.js"

ogp_site_name = project
ogp_use_first_image = True
ogp_social_cards = {"enable": False}  # they are drawn with a font that is fetched

# where a class is documented, if not where it is defined
_public = {
    "anndata._core.anndata.AnnData": "anndata.AnnData",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "numpy.random._generator.Generator": "numpy.random.Generator",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
    "pandas.core.indexes.base.Index": "pandas.Index",
    "pandas.core.series.Series": "pandas.Series",
    "scipy.sparse._csr.csr_array": "scipy.sparse.csr_array",
    "scipy.sparse._csr.csr_matrix": "scipy.sparse.csr_matrix",
}


def typehints_formatter(annotation: object, _config: object) -> str | None:
    """Link a class by its public name; ``None`` leaves an annotation to the extension."""
    if inspect.isclass(annotation):
        name = _public.get(f"{annotation.__module__}.{annotation.__qualname__}")
        if name is not None:
            return f":py:class:`~{name}`"
    return None


def _parse_returns(self: Any, _section: str) -> list[str]:
    """Read "Returns" as it is written: sentences, then a definition list of the fields that are set, as in scanpy."""
    lines = self._dedent(self._consume_to_next_section())
    if lines and lines[0] == ":":  # sphinx_autodoc_typehints puts it in front
        lines = lines[1:]
    return [":returns:", "", *self._indent(lines, 4), ""]


NumpyDocstring._parse_returns_section = _parse_returns  # type: ignore[method-assign]


def _copy_mathjax(app: Any, error: Exception | None) -> None:
    """Put MathJax and its fonts next to the pages."""
    from importlib.util import find_spec

    if error is not None or app.builder.format != "html":
        return
    found = find_spec("sphinx-mathjax-offline")
    if found is None or found.origin is None:
        message = "No MathJax to copy into the pages: pip install sphinx-mathjax-offline, part of the docs extra."
        raise ExtensionError(message)
    source = Path(found.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts"):
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, target / part)


def _draw_thumbnails(app: Any) -> None:
    """Write a figure of each tutorial, as its stored outputs show it, for the card that links to it."""
    target = Path(app.confdir) / "_static" / "thumbnails"
    target.mkdir(parents=True, exist_ok=True)
    for notebook in sorted(Path(app.confdir, "tutorials").glob("*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        outputs = [
            output.get("data", {})
            for cell in cells
            for output in cell.get("outputs", [])
        ]
        figures = [
            base64.b64decode(data["image/png"])
            for data in outputs
            if "image/png" in data
        ]
        if figures:
            chosen = min(_thumbnails.get(notebook.stem, 0), len(figures) - 1)
            (target / f"{notebook.stem}.png").write_bytes(figures[chosen])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", _draw_thumbnails)
    app.connect("build-finished", _copy_mathjax)
