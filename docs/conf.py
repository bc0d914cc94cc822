"""Sphinx settings; `make docs` builds the pages into build/docs."""

import inspect
import sys
from pathlib import Path

from sphinx.util.inspect import stringify_signature

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "s3h_ext"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "s3h_ext"
html_show_copyright = False
myst_heading_anchors = 3
napoleon_use_ivar = True
autodoc_default_options = {"members": True}
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"


def setup(app):
    """Show the arguments of `__init__` where a class has `__new__` for its records."""

    def signature(app, what, name, obj, options, text, returns):
        if what != "class" or text != "(*args: Any, **kwargs: Any)":
            return None
        found = inspect.signature(obj.__init__)
        own = found.replace(parameters=[*found.parameters.values()][1:])
        return stringify_signature(own, unqualified_typehints=True), None

    app.connect("autodoc-process-signature", signature)
