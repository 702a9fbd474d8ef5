"""One request to the sandbox and what becomes of it, as plain values. Knows no socket."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

KAFKA_JSON = "application/vnd.kafka.json.v2+json"
JSON = "application/json"
PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was read to its end.

    Header names are in lower case, the body is as it came (perhaps still compressed), and
    `received_at` is in milliseconds since the Unix epoch.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    received_at: int

    @property
    def path(self) -> str:
        """The target up to its query, still percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the question mark, still percent-encoded."""
        return self.target.partition("?")[2]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer. With `promised_bytes` it claims another length, and is cut there."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    promised_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """No answer: the connection is reset."""


@dataclass(frozen=True, slots=True)
class Stall:
    """No answer, and no end either: the connection stays open until the client goes."""


Outcome = Answer | Reset | Stall


class Refused(Exception):
    """The request ends here, with this answer and nothing stored."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def json_answer(status: int, body: object, content_type: str = JSON) -> Answer:
    """Give an answer whose body is `body` as compact JSON."""
    return Answer(status, content_type, json.dumps(body, separators=(",", ":")).encode())


def error_answer(
    status: int, message: str, *, error_code: int | None = None, content_type: str = KAFKA_JSON
) -> Answer:
    """Give an error as the proxy writes it; the error code is the status unless given."""
    code = status if error_code is None else error_code
    return json_answer(status, {"error_code": code, "message": message}, content_type)


def plain_answer(status: int, text: str | None = None) -> Answer:
    """Give an answer in plain text; without a text it is the status and its name."""
    return Answer(status, PLAIN, (text or f"{status}: {HTTPStatus(status).phrase}").encode())
