"""Text of the user's (titles, names, paths, reasons) made harmless for each format, one function per format."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from rich.markup import escape as without_markup

from benchmark.experiment.records import writable

_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Unicode's classes of marks that embed, override or isolate a direction."""

LONGEST_IN_FIGURE = 120
"""Letters of one name or line in a figure; a longer one would make the picture too large to draw."""

_FORMULA = tuple("=+-@\t\r＝＋－＠")
"""First letters from which a spreadsheet reads a cell as a formula."""

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
    """Return the text on one line: without control characters and marks that turn its direction, and as UTF-8 can hold it.

    >>> plain("a\\n\\n b\\x1b[31m")
    'a b[31m'
    """
    spaced = "".join(" " if character.isspace() else character for character in writable(text))
    kept = "".join(character for character in spaced if not _invisible(character))
    return re.sub(" {2,}", " ", kept).strip()


def csv(text: str) -> str:
    """Return a text cell that no spreadsheet takes for a formula; the writer of the file quotes it.

    >>> csv("=1+1")
    "'=1+1"
    """
    guard = "'" if text.startswith(_FORMULA) else ""
    return guard + writable(text).replace("\0", "").replace("\r", "\n")  # a lone return is not quoted


def markdown(text: str) -> str:
    """Return the text for Markdown, also inside a table: no HTML, no code, no link, no formula, no heading.

    >>> markdown("<b> | `x`")
    '&lt;b&gt; \\\\| \\\\`x\\\\`'
    """
    text = "".join(_MARKDOWN.get(character, character) for character in plain(text)).replace("](", r"]\(")
    return f"\\{text}" if re.match(r"#|[-+] |---", text) else text


def tex(text: str) -> str:
    """Return the text for LaTeX, as one paragraph.

    >>> tex("50% of x_1")
    '50\\\\% of x\\\\_1'
    """
    text = plain(text)
    guard = "{}" if text.startswith(("[", "*")) else ""  # else read as an argument of the line break before it
    return guard + "".join(_TEX.get(character, character) for character in text)


def terminal(text: str) -> str:
    """Return the text for rich's console, which shows it as it is; nothing in it moves the cursor."""
    return without_markup(plain(text))


def figure(text: str) -> str:
    """Return one line for a figure; a long one is cut, and a hash keeps it different from others."""
    text = plain(text)
    if len(text) <= LONGEST_IN_FIGURE:
        return text
    return f"{text[: LONGEST_IN_FIGURE - 9]}…{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def _invisible(character: str) -> bool:
    """Return whether it is a control character, or one that turns the direction of the text around it."""
    return unicodedata.category(character) == "Cc" or unicodedata.bidirectional(character) in _TURNING
