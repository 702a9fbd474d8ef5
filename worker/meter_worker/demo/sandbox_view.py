"""What the demo sees of the sandbox and tells it, over HTTP."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, NamedTuple

from meter_worker.demo.failure import DemoFailed

__all__ = ["Counts", "SandboxView", "reserved_port"]

_HOST = "127.0.0.1"
_ANSWER_SECONDS = 30.0


class Counts(NamedTuple):
    """How many records the backend has received, and under how many different keys."""

    received: int
    keys: int


def reserved_port() -> socket.socket:
    """Return a free port, bound until it is closed: connections to it are refused meanwhile.

    A port that is merely free is not as good: a client that keeps trying may be given it as its
    own and get connected to itself.
    """
    bound = socket.socket()
    bound.bind((_HOST, 0))
    return bound


class SandboxView:
    """Looks into the sandbox on a port of this machine. Raises `DemoFailed`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://{_HOST}:{port}"
        self.port = port

    def is_up(self) -> bool:
        """Return whether it listens."""
        try:
            socket.create_connection((_HOST, self.port), _ANSWER_SECONDS).close()
        except OSError:
            return False
        return True

    def counts(self) -> Counts:
        """Return how much it has received so far."""
        answer = self._ask("GET", "records?fields=summary")
        return Counts(answer["count"], answer["distinct"])

    def values(self) -> list[dict[str, Any]]:
        """Return the value of every record it has received, in order, whatever came again too."""
        return [record["value"] for record in self._ask("GET", "records")["records"]]

    def slow_down(self, seconds: float, *, losing_a_reply: bool = False) -> None:
        """Let each request take so long; the next one is stored, and its reply lost, if asked."""
        faults: list[dict[str, object]] = [{"fault": "slow", "seconds": seconds}]
        if losing_a_reply:
            faults.insert(0, {"fault": "drop_reply", "times": 1})
        self._ask("PUT", "faults", faults)

    def has_lost_reply(self) -> bool:
        """Return whether a reply was lost since `slow_down` asked for it."""
        return any(
            fault["fault"] == "drop_reply" and fault["struck"]
            for fault in self._ask("GET", "faults")
        )

    def _ask(self, method: str, place: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=_ANSWER_SECONDS)
        try:
            text = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} if text else {}
            connection.request(method, f"/sandbox/{place}", text, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise DemoFailed(
                    f"the sandbox answers {answer.status} to {method} /sandbox/{place}"
                )
            return json.loads(content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DemoFailed(f"the sandbox cannot be asked for {place}: {error}") from error
        finally:
            connection.close()
