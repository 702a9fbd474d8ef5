"""The wire of the simulation: has the interface of `HttpLink`, and lets time stand still.

`RestBackend` sends and judges in one call. Here the call is made twice: the first shows what
leaves and is broken off; the second, whenever the world likes, gets the answer.
"""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meter_worker.http_link import Reply


class Letter(NamedTuple):
    """A request as it leaves."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def records(self) -> list[str]:
        """The records as they are, each as canonical JSON text."""
        body = self.body
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return [json.dumps(record) for record in json.loads(body)["records"]]

    @property
    def size(self) -> int:
        """The size of the body, before compression."""
        is_gzip = self.headers.get("Content-Encoding") == "gzip"
        return len(gzip.decompress(self.body) if is_gzip else self.body)


class OnTheWire(Exception):
    """The request has left, and nothing has come back yet."""

    def __init__(self, letter: Letter) -> None:
        super().__init__(letter.url)
        self.letter = letter


Answer: TypeAlias = "Reply | Exception"


class Wire:
    """What is between a flusher and the peers, as a `HttpLink`."""

    def __init__(self) -> None:
        self._answer: Answer | None = None

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Reply:
        """Return the answer at hand, or break off."""
        if self._answer is None:
            raise OnTheWire(Letter(method, url, dict(headers), body or b""))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def answering(self, make: Any, answer: Answer) -> Any:
        """Make the call, and let this be what comes back."""
        self._answer = answer
        try:
            return make()
        finally:
            self._answer = None

    def interrupt(self) -> None:
        """Nothing waits here."""

    def without_token(self, body: bytes) -> bytes:
        """There is no token."""
        return body
