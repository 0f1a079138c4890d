from importlib.metadata import version as installed_version

from sphinx.application import Sphinx

project = "Recurra"
author = "The Recurra authors"
copyright = "2026, the Recurra authors"
version = release = installed_version("recurra-core")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_gallery.gen_gallery", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "gallery/*.rst", "examples/*.ipynb", "examples/*.py*", "sg_execution_times.rst"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = f"Recurra {release}"
html_theme_options = {"show_prev_next": True, "navigation_with_keys": False}
html_show_sourcelink = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
}

autodoc_typehints = "none"


def as_written(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    # Docstrings hold equations and tables in plain text: shown as they stand, not parsed as markup.
    lines[:] = ["::", "", *(f"    {line}" for line in lines), ""]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", as_written)
