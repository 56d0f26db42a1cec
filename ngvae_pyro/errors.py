"""The exception and the warning that are addressed to the user."""

import difflib
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any


class UserError(ValueError):
    """One clear line for the user; the command line prints it to stderr and exits with 2.

    Args:
        message: What was expected and what came; :func:`one_line` is made of it, since it may quote
            anything.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


class Notice(UserWarning):
    """One clear line for the user about something that is done differently than requested."""


# Longest message in characters: a screenful. Longer ones quote somebody's value at length.
LONGEST = 1200


def printable(text: str) -> str:
    r"""Escape line breaks and other characters that are not printable.

    File names and other people's files may contain any, including terminal control sequences.

    >>> printable("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: object) -> str:
    """Format a message as one printable line; the middle of a very long one is left out."""
    text = printable(str(message))
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST * 3 // 4 - 5]} ... {text[-LONGEST // 4 :]}"


def described(value: Any) -> str:
    """Describe a value in a few words: short ones literally, arrays by their shape.

    >>> described("a.png"), described([1.0]), described(None)
    ("'a.png'", 'a list', 'None')
    """
    if value is None or isinstance(value, (str, int, float, PurePath)):
        text = repr(str(value)) if isinstance(value, (str, PurePath)) else str(value)
        return text if len(text) <= 100 else f"{text[:75]} ... {text[-20:]}"
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    article = "the class" if isinstance(value, type) else "an" if name[0] in "AEIOUaeiou" else "a"
    shape = getattr(value, "shape", None)
    return f"{article} {name}" + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def expect(what: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Refuse an argument that has none of the accepted types.

    Args:
        what: The name of the argument.
        value: What was passed.
        kinds: The accepted types. True and False do not count as numbers.
        expected: What to pass, in words.

    Raises:
        UserError: ``what: expected ..., got ...``.
    """
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise UserError(f"{what}: expected {expected}, got {described(value)}")


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string.

    Args:
        name: What was given.
        known: The names that exist.
        prefix: Put before the match, for example the folder of the names.
    """
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{prefix}{match[0]}'?" if match else ""
