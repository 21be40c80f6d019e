"""The documentation site: sphinx-build -W --keep-going docs docs/_build/html."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import docstrings  # noqa: E402
import generated  # noqa: E402

import geolatent  # noqa: E402

# `gl.data` is a name of the package, not a module of it; autodoc imports modules
sys.modules["geolatent.data"] = geolatent.data

project = "geolatent"
author = "the geolatent developers"
project_copyright = author
version = release = geolatent.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_generated", "examples", "gallery/*.ipynb", "**/.ipynb_checkpoints"]
# what ``single backticks`` of a docstring name: a public name, else code
default_role = "py:obj"

# pages
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks come with their outputs

# reference
autosummary_generate = True
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "none"  # docstrings have them, in words
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
templates_path = ["_templates"]
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

# gallery
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "thumbnail_size": (480, 320),
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": False,
    "plot_gallery": "True",
}

# the site; it needs no network, neither to be built nor to be read
html_theme = "pydata_sphinx_theme"
html_title = f"geolatent {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_extra_path = ["demo"]  # what is in it is copied to the top of the site as it is
html_show_sourcelink = False
html_copy_source = False
# pages without pages below them
_single = ("index", "getting-started", "demo", "benchmark", "changelog", "contributing")
html_sidebars = {name: [] for name in _single}
html_theme_options = {
    "logo": {"text": "geolatent"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}

# one file of MathJax, with its glyphs as paths, out of the package that brings it
_mathjax = importlib.util.find_spec("sphinx-mathjax-offline")
html_static_path.append(str(Path(_mathjax.origin).parent / "static" / "mathjax" / "tex-svg.js"))
mathjax_path = "tex-svg.js"


def setup(app):
    """Write what is made from data before Sphinx looks for pages."""
    app.connect("config-inited", lambda _app, _config: generated.write(HERE))
    # before napoleon, which makes reStructuredText of the sections
    app.connect("autodoc-process-docstring", docstrings.as_restructured_text, priority=400)
    app.connect("autodoc-skip-member", docstrings.skip_foreign)
    app.connect("autodoc-process-bases", docstrings.public_bases)
