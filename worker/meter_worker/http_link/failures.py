"""Why no answer came, in words for people."""

from __future__ import annotations

import ssl
from datetime import datetime, timezone

from meter_lib.clock import SystemClock

__all__ = ["BadAnswer", "LinkFailed", "LinkInterrupted", "described", "innermost", "is_distrust"]

# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL.
_DOUBTFUL_DATES = (9, 10)


class LinkFailed(Exception):
    """No whole answer came. Whether the peer took the request is unknown."""

    def __init__(
        self, message: str, *, timed_out: bool = False, wants_an_operator: bool = False
    ) -> None:
        super().__init__(message)
        self.timed_out = timed_out
        self.wants_an_operator = wants_an_operator


class LinkInterrupted(Exception):
    """`interrupt` was called. Whether the peer took the request is unknown."""


class BadAnswer(Exception):
    """The body of an answer is too long, too short, or cannot be unpacked."""


def is_distrust(error: Exception) -> bool:
    """Return whether we do not trust the peer's certificate: that does not pass by itself."""
    return isinstance(innermost(error), ssl.SSLCertVerificationError)


def described(error: Exception) -> str:
    """Return what went wrong; of an answer that is no HTTP, the text may hold anything."""
    if isinstance(error, BadAnswer):
        return str(error)
    cause = innermost(error)
    text = f"{type(error).__name__}: {str(cause) or type(cause).__name__}"
    if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _DOUBTFUL_DATES:
        # The clock that the TLS library goes by, too.
        shows = datetime.fromtimestamp(SystemClock().now() // 1000, timezone.utc)
        return f"the clock of this device may be wrong, it shows {shows:%Y-%m-%d %H:%M} UTC: {text}"
    return text


def innermost(error: BaseException) -> BaseException:
    """Return the error that the others wrap, wherever its library keeps it."""
    for held in (getattr(error, "reason", None), *error.args[:2], error.__cause__):
        if isinstance(held, BaseException):
            return innermost(held)
    return error
