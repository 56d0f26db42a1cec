"""The exception and the warning that are meant for the user's eyes."""

import difflib
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any


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


def described(value: Any) -> str:
    """A value in a few words, for a message: short ones as they are, of an array the shape.

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
    """Refuse an argument that is of none of some types.

    Args:
        what: The name of the argument.
        value: What was passed.
        kinds: The types that will do. True and False are no numbers here.
        expected: What to pass, in words.

    Raises:
        UserError: ``what: expected ..., got ...``.
    """
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise UserError(f"{what}: expected {expected}, got {described(value)}")


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string.

    The prefix, such as the folder of the names, is put before the one that is found.
    """
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{prefix}{match[0]}'?" if match else ""
