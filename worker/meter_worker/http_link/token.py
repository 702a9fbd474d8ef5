"""Our credentials: shown to the peer, and to nobody else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BearerToken"]


class BearerToken:
    """A bearer token, or none."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._of_proxy: tuple[str, ...] = ()

    def learn_proxy(self, credentials: Iterable[str]) -> None:
        """Keep these to ourselves as well, from now on."""
        self._of_proxy = tuple(credentials)

    @property
    def header(self) -> str | None:
        """What `Authorization` is to say."""
        return None if self._token is None else f"Bearer {self._token}"

    def hidden_in(self, body: bytes) -> bytes:
        """Return an answer without the token, should the peer have echoed it."""
        for credentials in self._of_proxy:
            body = body.replace(credentials.encode("utf-8", "replace"), b"***")
        if self._token is None:
            return body
        body = body.replace(self._token.encode(), b"***")
        if b"\\" not in body:
            return body
        # In JSON it may be escaped, character by character: then as it is once that is undone.
        try:
            text = json.dumps(json.loads(body), ensure_ascii=False)
        except (ValueError, RecursionError):
            return body
        token = json.dumps(self._token)[1:-1]
        return text.replace(token, "***").encode("utf-8", "replace") if token in text else body
