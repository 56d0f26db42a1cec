"""The exception and the warning that are meant for the user's eyes."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """One clear line for the user; the command line prints it to stderr and exits with 2."""


class Notice(UserWarning):
    """One clear line for the user, of what goes on otherwise than asked for."""


# Characters of a message: a screenful. What is longer quotes somebody's value at length.
LONGEST = 1200


def printable(text: str) -> str:
    r"""Text whose line breaks and other signs that are not printable are escaped.

    File names and the files of others may hold any, those that steer a terminal among them.

    >>> printable("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: object) -> str:
    """A message as one printable line; the middle of a very long one is left out."""
    text = printable(str(message))
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST * 3 // 4]} ... {text[-LONGEST // 4 :]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""
