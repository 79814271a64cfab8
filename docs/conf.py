"""Sphinx configuration. The build treats warnings as errors (``make docs``)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import visreg_core

project = "visreg-core"
author = "The visreg-core contributors"
copyright = f"2026, {author}"
version = release = visreg_core.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "api_pages",
    "gallery",
    "generated_pages",
    "rooms",
]
default_role = "py:obj"  # `name` in a docstring is a link where it can be
exclude_patterns = ["_build", "_ext", "examples", "generated/*.md"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
mathjax3_config = {
    "tex": {
        "macros": {
            "E": r"\mathbb{E}",
            "R": r"\mathbb{R}",
            "sg": r"\operatorname{sg}",
            "sort": r"\operatorname{sort}",
            "std": r"\operatorname{std}",
            "Var": r"\operatorname{Var}",
            "tr": r"\operatorname{tr}",
            "LCA": r"\operatorname{LCA}",
        }
    }
}

autodoc_typehints = "none"  # the docstrings say more: shapes and dtypes
numpydoc_show_class_members = False
# A public object without a docstring, or one that documents a parameter it does not have, is a
# warning, hence an error.
numpydoc_validation_checks = {"GL08", "PR02"}

html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_theme_options = {
    "navigation_depth": 2,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}
# Only the reference has pages below it to navigate to.
html_sidebars = {page.stem: [] for page in Path(__file__).parent.glob("*.md") if page.stem != "api"}
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
