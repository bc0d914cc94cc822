"""Sphinx settings; `make docs` builds the pages into build/docs."""

project = "s3h_ext"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "s3h_ext"
myst_heading_anchors = 3
