"""Hostile values that several kinds share."""

from __future__ import annotations

from random import Random

LONG_INTEGER = "9" * 4500

TEXTS = (
    "", " ", "\t", "a" * 300, "é" * 200, "x" * 5000, "~", "~nosuchuser", "~nosuchuser/x", "~/x", ".", "..", "/", "../../..",
    "./", "a\nb", "a\rb", "a\x1b[31mb", "a\x7fb", "\u202eabc", "\u2028", "𝔘" * 20, "e\u0301", "\ufeffa", "a\0b", "[", "]",
    "[]", "a[", "a]", "a[b", "a[]", "a[=]", "a[b=]", "a[=c]", "a[b=c,b=d]", "a[b=c]d", "a[[b=c]]", "a,b", ",", ",,", "a,",
    ",a", "+", "none+", "none+none", "=", "==", ":", "::", "folder:", "folder:.", "folder:/nowhere", "none:x", "{}", "{0}",
    "%s%n", "%(a)s", "$HOME", "$(id)", "`id`", "a b", "<script>alert(1)</script>", "=1+1", "\\input{x}", "|", "*", "?",
    "--", "-", "-x", "--help", "''", '"', "none", "null", "true", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem",
    "/etc/passwd", "con.txt", "x.yaml", "x.yml",
)  # fmt: skip

NUMBERS = (
    "nan", "NaN", "inf", "-inf", "Infinity", "1e999", "-1e999", "1e-999", "1e308", "5e-324", "-1", "0", "-0", "-0.0", "0.0",
    "1.0", "0.5", "2", "1e3", "1_000", "0x10", "0b1", "0o7", "007", "1.", ".5", "+1", " 1", "1 ", "１", "٣", "²", "½", "1,5",
    "1;2", "--1", "2147483648", "4294967297", "9223372036854775807", "9223372036854775808", "18446744073709551616",
    "1" + "0" * 30, LONG_INTEGER, "-" + LONG_INTEGER, "0." + LONG_INTEGER, "1e" + LONG_INTEGER, "",
)  # fmt: skip


def text(draw: Random) -> str:
    """Return a hostile text: one of the list, two of them together, or random letters."""
    roll = draw.random()
    if roll < 0.7:
        return draw.choice(TEXTS)
    if roll < 0.85:
        return draw.choice(TEXTS) + draw.choice(TEXTS)
    return "".join(chr(draw.choice((draw.randrange(1, 128), draw.randrange(1, 0xD800)))) for _ in range(draw.randrange(1, 12)))


def number(draw: Random) -> str:
    """Return a hostile number as text."""
    return draw.choice(NUMBERS)


def flipped(content: bytes, draw: Random, most: int = 4) -> bytes:
    """Return the bytes with up to `most` of them replaced."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, most) if changed else 0):
        changed[draw.randrange(len(changed))] = draw.choice((0, 255, 85, draw.randrange(256)))
    return bytes(changed)


def damaged(content: bytes, draw: Random) -> bytes:
    """Return the bytes flipped, cut, extended, emptied or replaced."""
    roll = draw.random()
    if roll < 0.5:
        return flipped(content, draw)
    if roll < 0.75:
        return content[: draw.randrange(len(content) + 1)]
    middle = draw.randrange(len(content) + 1)
    return draw.choice(
        (
            b"",
            b"\0" * len(content),
            draw.randbytes(draw.randrange(1, 200)),
            content + draw.randbytes(draw.randrange(1, 50)),
            content[:middle] + b"\0" * (len(content) - middle),
            content[:middle] + content[middle + draw.randrange(1, 20) :],
        )
    )
