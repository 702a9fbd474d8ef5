"""The backend behind a Kafka REST proxy, and the accounts API: requests in, outcomes out."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING
from urllib.parse import quote

from meter_worker.backend import AccountUnknown, Interrupted, Unavailable
from meter_worker.http_link import LinkFailed, LinkInterrupted
from meter_worker.verdicts import judge_account, judge_delivery
from meter_worker.wire import header_text, request_body

if TYPE_CHECKING:
    from meter_lib.clock import Clock
    from meter_worker.backend import AccountAnswer, Outcome, Request
    from meter_worker.http_link import HttpLink

__all__ = ["RestAccounts", "RestBackend"]


def _outage(error: LinkFailed) -> Unavailable:
    return Unavailable(
        str(error), timed_out=error.timed_out, wants_an_operator=error.wants_an_operator
    )


class RestBackend:
    """Delivers to `POST {stream_url}/topics/{topic}`, Kafka REST Proxy v2 JSON."""

    def __init__(
        self,
        link: HttpLink,
        *,
        stream_url: str,
        topic: str,
        compression: str,
        clock: Clock,
        dialect: str = "auto",
    ) -> None:
        """Set up; nothing is connected yet. `dialect` is METER_DIALECT."""
        self._link = link
        self._dialect = dialect
        self._url = f"{stream_url}/topics/{topic}"
        self._gzip = compression == "gzip"
        self._clock = clock

    def deliver(self, request: Request) -> Outcome:
        """Send the request once and return what became of it."""
        body = request_body(request.records)
        headers = {
            # Exactly this: one of the proxies compares the whole string.
            "Content-Type": "application/vnd.kafka.json.v2+json",
            "Accept": "application/vnd.kafka.v2+json, application/json",
            "x-tenant-id": header_text(request.tenant_id),
            "x-device-id": header_text(request.device_id),
            # A string of RFC 8941, in quotes (draft-ietf-httpapi-idempotency-key-header-07).
            "Idempotency-Key": f'"{request.idempotency_key}"',
        }
        if self._gzip:
            body = gzip.compress(body, mtime=0)
            headers["Content-Encoding"] = "gzip"
        try:
            reply = self._link.send("POST", self._url, headers=headers, body=body)
        except LinkInterrupted:
            return Interrupted()
        except LinkFailed as error:
            return _outage(error)
        return judge_delivery(
            reply.status,
            reply.headers,
            self._link.without_token(reply.body),
            sent=len(request.records),
            now=self._clock.now(),
            dialect=self._dialect,
        )

    def interrupt(self) -> None:
        """Break off what is under way; every further `deliver` is interrupted too."""
        self._link.interrupt()


class RestAccounts:
    """Asks `GET {base}/v1alpha1/customer-accounts/tenant/{tenant_id}`."""

    def __init__(self, link: HttpLink, *, base_url: str, clock: Clock) -> None:
        self._link = link
        self._base_url = base_url
        self._clock = clock

    def look_up(self, tenant_id: str) -> AccountAnswer:
        """Ask once for the tenant's account."""
        if tenant_id in {".", ".."}:
            # However it is written, on the way it becomes another path: that of all accounts.
            return AccountUnknown(f"a tenant called {tenant_id!r} cannot be asked for by a URL")
        url = f"{self._base_url}/v1alpha1/customer-accounts/tenant/{quote(tenant_id, safe='')}"
        headers = {"Accept": "application/json", "x-tenant-id": header_text(tenant_id)}
        try:
            reply = self._link.send("GET", url, headers=headers)
        except LinkInterrupted:
            return Interrupted()
        except LinkFailed as error:
            return _outage(error)
        return judge_account(
            reply.status,
            reply.headers,
            self._link.without_token(reply.body),
            now=self._clock.now(),
        )

    def interrupt(self) -> None:
        """Break off what is under way; every further `look_up` is interrupted too."""
        self._link.interrupt()
