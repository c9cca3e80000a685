"""An extension of griffe, which reads docstrings for mkdocstrings: rewrites those in the manner of TRL."""

from typing import Any

import griffe

from .reference import as_markdown, documented


class Docstrings(griffe.Extension):
    """Names in brackets become links, if they are on a page, and groups of parameters lists."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of whatever has been read."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value, documented())
