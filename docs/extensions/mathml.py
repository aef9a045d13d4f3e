"""Mathematics as MathML, which browsers draw by themselves: no script, no font, nothing to fetch."""

from docutils import nodes
from latex2mathml.converter import convert

UNKNOWN = {r"\arg\min": r"\operatorname{arg\,min}", r"\_": "_"}
"""What the converter does not know, in words that it does."""


def mathml(latex: str, display: str) -> str:
    r"""A formula; lines that `\\` parts without an environment of their own are aligned."""
    if "\\\\" in latex and "\\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    for word, drawn in UNKNOWN.items():
        latex = latex.replace(word, drawn)
    made = convert(" ".join(latex.split()), display=display)
    return made.replace(
        "<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>'
    )  # a norm is as high as a letter


def visit_inline(translator, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(translator, node: nodes.math_block) -> None:
    translator.body.append(
        f'<div class="formula">{mathml(node.astext(), "block")}</div>'
    )
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
