"""The exception and the warning that are meant for the user's eyes."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """One clear line for the user; the command line prints it to stderr and exits with 2."""


class Notice(UserWarning):
    """One clear line for the user, of what goes on otherwise than asked for."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""
