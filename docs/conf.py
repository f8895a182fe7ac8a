"""Settings of the HTML pages: `make docs` builds docs/_build/docs/index.html from the Markdown pages.

The source folder is the root of the repository, not docs/, so that the pages can link to the README, to the
dataset card and to files of the code by the same relative links that work on GitHub.
"""

project = "Masked autoencoders on chest X-rays"
root_doc = "docs/index"
extensions = ["myst_parser"]
include_patterns = ["*.md", "docs/*.md", "mimic_cxr_dataset/*.md"]
exclude_patterns = [".*", "**/.*", "docs/_build", "runs", "sample_data", "nih-cxr", "models", "tests"]

myst_heading_anchors = 4  # as on GitHub: a link may end in #a-heading
myst_links_external_new_tab = False
smartquotes = False  # --flags keep their dashes, commands their quotes

html_theme = "alabaster"
html_theme_options = {
    "page_width": "1300px",  # 110 characters of a command
    "body_max_width": "1000px",
    "sidebar_width": "250px",
    "show_powered_by": False,
}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_title = project
html_show_copyright = False
html_show_sourcelink = False
