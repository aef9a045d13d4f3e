"""How the site is built: `python -m sphinx -W -b html docs docs/_build/html`, from what the extra `docs` brings.

Nothing is executed here: code blocks of the pages run in the tests (`tests/docs/`), notebooks are kept executed.
Nothing is fetched either, now or by a reader's browser.
"""

import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "extensions"))

import fntrain  # noqa: E402

project, author, copyright = "fntrain", "The fntrain authors", "The fntrain authors"
version = release = fntrain.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "mathml",
    "reference",
    "results",
]
exclude_patterns = ["_build", "extensions"]
default_role = "public"
nitpicky = False
suppress_warnings = ["mystnb.unknown_mime_type"]

# Pages are Markdown.
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True

# The reference is the docstrings.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
python_trailing_comma_in_multi_line_signatures = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "fntrain"
html_math_renderer = "mathml"
html_static_path, html_favicon = ["_static"], "_static/icon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = False
copybutton_exclude = ".linenos, .gp, .go"


def setup(app):
    """Bring the notebooks, which live outside, to where Sphinx looks for pages."""
    into = HERE / "notebooks"
    into.mkdir(exist_ok=True)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        if (
            not (into / path.name).exists()
            or (into / path.name).read_bytes() != path.read_bytes()
        ):
            shutil.copyfile(path, into / path.name)
