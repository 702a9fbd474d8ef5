"""`assert_never` for Python 3.10, which has none."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["assert_never"]


def assert_never(value: NoReturn) -> NoReturn:
    """Let the type checkers prove that no case was forgotten. Raises where one was all the same."""
    raise AssertionError(f"nobody handles {value!r}")
