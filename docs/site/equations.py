"""Equations of the pages, as GitHub takes them, in MathML: a browser needs neither scripts nor fonts for it."""

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert

from .pages import outside_code


def render_equations(text: str) -> str:
    """Markdown whose blocks of `math` and `$...$` are MathML; what is in code stays.

    Raises:
        ValueError: for an equation that would not be shown as it is meant.
    """
    text = re.sub(r"^```math\n(.*?)^```$", lambda block: _block(block[1]), text, flags=re.MULTILINE | re.DOTALL)
    return outside_code(text, lambda part: re.sub(r"\$([^$]+)\$", lambda inline: _inline(inline[1]), part))


def _block(equation: str) -> str:
    return f'<div class="equation">{mathml(equation.strip(), "block")}</div>\n'


def _inline(equation: str) -> str:
    # Markdown takes a line that begins with <math> for a block
    return f"<span>{mathml(equation, 'inline')}</span>"


def mathml(equation: str, display: str) -> str:
    """An equation of LaTeX in MathML.

    Raises:
        ValueError: if the library does not know something in it.
    """
    text = convert(equation.replace("{aligned}", "{split}"), display=display)  # it knows the latter only
    text = re.sub(r"(<mi>[a-z]{2,}</mi>)(<m)", r'\1<mspace width="0.167em" />\2', text)  # log x, not logx
    try:
        words = "".join(ElementTree.fromstring(text).itertext())
    except ElementTree.ParseError:
        words = "\\"
    if "\\" in words:
        raise ValueError(
            f"The equation {equation!r} has something that latex2mathml does not know. Write it otherwise."
        )
    return text
