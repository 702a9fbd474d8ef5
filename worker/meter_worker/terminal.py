"""What the terminal of whoever reads can show: the conventions TERM=dumb and NO_COLOR."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["can_draw", "wants_colours"]


def can_draw(stream: TextIO) -> bool:
    """Return whether what a stream shows can be drawn over: bars, pictures that change."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def wants_colours() -> bool:
    """Return whether colours may be shown, where there is a terminal (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
