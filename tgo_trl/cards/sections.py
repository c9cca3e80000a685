"""Sections that are put into a card that is there already, and replaced when they are written again."""

import re

LATER_HEADINGS = ("Scores", "Training procedure", "Citation")
"""Of the package's own cards, what a new section comes before."""


def with_section(card: str, name: str, section: str) -> str:
    """The text of a card with a section in it, everything else as it was.

    The section stands between two comments, which do not show, and by which it is found again.

    Args:
        card: the text, with or without metadata; may be empty.
        name: of the section, in the comments.
        section: Markdown, with its heading.
    """
    begin, end = f"<!-- tgo-trl: {name} -->", f"<!-- tgo-trl: end of {name} -->"
    block = f"{begin}\n{section}\n{end}"
    start, stop = card.find(begin), card.find(end)
    if 0 <= start < stop:
        return card[:start] + block + card[stop + len(end) :]
    heading = re.search(rf"^## ({'|'.join(LATER_HEADINGS)})[ \t]*$", card, re.MULTILINE)
    if heading is not None:
        return f"{card[: heading.start()]}{block}\n\n{card[heading.start() :]}"
    return f"{card.rstrip()}\n\n{block}\n" if card.strip() else f"{block}\n"
