"""Sections that are put into a card that is there already, and replaced when they are written again."""

import re

LATER_HEADINGS = ("Scores", "Training procedure", "Citation")
"""Of the package's own cards, what a new section comes before."""
MARK = "<!-- tgo-trl: "
"""What the comments around a section begin with."""
_BLOCK = MARK + "({name})(?: of ([0-9a-f]+))? -->(.*?)" + MARK + "end of \\1 -->"


def with_section(card: str, name: str, section: str, weights: str | None = None) -> str:
    """The text of a card with a section in it, everything else as it was.

    The section stands between two comments, which do not show, and by which it is found again.

    Args:
        card: the text, with or without metadata; may be empty.
        name: of the section, in the comments.
        section: Markdown, with its heading.
        weights: a digest of those that the section describes, for the comment; None if it is not known.
    """
    of_weights = "" if weights is None else f" of {weights}"
    block = f"{MARK}{name}{of_weights} -->\n{section}\n{MARK}end of {name} -->"
    before = re.search(_BLOCK.format(name=re.escape(name)), card, re.DOTALL)
    if before is not None:
        return card[: before.start()] + block + card[before.end() :]
    heading = re.search(rf"^## ({'|'.join(LATER_HEADINGS)})[ \t]*$", card, re.MULTILINE)
    if heading is not None:
        return f"{card[: heading.start()]}{block}\n\n{card[heading.start() :]}"
    return f"{card.rstrip()}\n\n{block}\n" if card.strip() else f"{block}\n"


def with_sections_of(previous: str, card: str, weights: str | None) -> str:
    """The text of a card with the sections of the card before it that describe the same weights.

    Args:
        previous: the text of the card before.
        card: the text of the new one.
        weights: a digest of those that the new one describes; None if there are none, and nothing is kept.
    """
    for name, described, section in re.findall(_BLOCK.format(name="[a-z]+"), previous, re.DOTALL):
        if described == weights:
            card = with_section(card, name, section.strip(), weights)
    return card
