"""Configuration of Sphinx for the course's pages; ``book/pages.py`` calls it. Nothing on a page comes from a network."""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

from book.tidy import ROOT, repository

project = html_title = "Federated learning for medical images"
extensions = ["myst_nb", "sphinx_design"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Show the solution", "Hide the solution"  # nothing else is hidden
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_math_renderer = "mathml"
html_show_copyright = False
html_use_index = False
html_theme_options = {
    "repository_url": repository(ROOT),
    "repository_branch": "main",
    "path_to_docs": "notebooks",
    "use_repository_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "footer_content_items": "",
    "navbar_persistent": [],  # the search field stands in the sidebar
    "home_page_in_toc": True,
}


def draw_formula(translator, node):
    """Formulas as MathML, which browsers draw themselves: MathJax would have to come from a server."""
    try:
        formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    except MathError as error:
        logging.getLogger(__name__).warning("the formula %r cannot be drawn: %s", node.astext(), error, location=node)
        formula = f"<code>{translator.encode(node.astext())}</code>"
    translator.body.append(formula)
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (draw_formula, None), (draw_formula, None))
