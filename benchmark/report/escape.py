"""Make text from the user (titles, names, paths, reasons) harmless: one function for each output format."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from rich.markup import escape as without_markup

from benchmark.experiment.records import writable

_DIRECTION_CLASSES = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of Unicode whose marks embed, override or isolate a text direction."""

MAX_FIGURE_LETTERS = 120
"""Maximum number of characters of a name or line in a figure. A longer one would make the picture too large to draw."""

_FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")
"""First characters by which a spreadsheet recognises a formula."""

_MARKDOWN = {
    **{character: f"\\{character}" for character in "\\`|*~$"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}

_TEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "·": r"$\cdot$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\symbol{96}",
}


def plain(text: str) -> str:
    """Return the text on one line and valid in UTF-8, without control characters and without marks that change its direction.

    >>> plain("a\\n\\n b\\x1b[31m")
    'a b[31m'
    """
    spaced = "".join(" " if character.isspace() else character for character in writable(text))
    kept = "".join(character for character in spaced if not _is_invisible(character))
    return re.sub(" {2,}", " ", kept).strip()


def csv(text: str) -> str:
    """Return a text cell that no spreadsheet reads as a formula. The writer of the file adds the quotation marks.

    >>> csv("=1+1")
    "'=1+1"
    """
    guard = "'" if text.startswith(_FORMULA_STARTS) else ""
    return guard + writable(text).replace("\0", "").replace("\r", "\n")  # the writer does not quote a lone carriage return


def markdown(text: str) -> str:
    """Return the text for Markdown, also inside a table. It forms no HTML, code, link, formula or heading.

    >>> markdown("<b> | `x`")
    '&lt;b&gt; \\\\| \\\\`x\\\\`'
    """
    text = "".join(_MARKDOWN.get(character, character) for character in plain(text)).replace("](", r"]\(")
    return f"\\{text}" if re.match(r"#|[-+] |---", text) else text


def tex(text: str) -> str:
    """Return the text for LaTeX as one paragraph.

    >>> tex("50% of x_1")
    '50\\\\% of x\\\\_1'
    """
    text = plain(text)
    guard = "{}" if text.startswith(("[", "*")) else ""  # otherwise LaTeX reads it as an argument of the line break before
    return guard + "".join(_TEX.get(character, character) for character in text)


def terminal(text: str) -> str:
    """Return the text for the console of rich, which shows it literally. Nothing in it moves the cursor."""
    return without_markup(plain(text))


def figure(text: str) -> str:
    """Return the text as one line for a figure. A long line is cut, and a hash at its end keeps it unique."""
    text = plain(text)
    if len(text) <= MAX_FIGURE_LETTERS:
        return text
    return f"{text[: MAX_FIGURE_LETTERS - 9]}…{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def _is_invisible(character: str) -> bool:
    """Return whether the character is a control character or changes the direction of the text around it."""
    return unicodedata.category(character) == "Cc" or unicodedata.bidirectional(character) in _DIRECTION_CLASSES
