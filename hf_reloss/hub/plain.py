"""Texts that strangers wrote, to be shown in pages, tables, pictures and a terminal."""

from typing import Any

LOOKALIKES = str.maketrans({"<": "‹", ">": "›", "`": "'"})
"""In place of the characters that start HTML, comments and code in Markdown."""


def plain(value: Any) -> str:
    """A value as one line of text that starts no markup, whoever wrote it.

    Characters that do not print, with which a terminal is steered, are left out.

    Example:
        >>> plain("<lambda>\\n# of `mine`")
        "‹lambda› # of 'mine'"
    """
    line = "".join(filter(str.isprintable, " ".join(str(value).split())))
    return line.translate(LOOKALIKES).replace("](", "] (")  # which would be a link or a picture
