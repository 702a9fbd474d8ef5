"""The backend behind a Kafka REST proxy, and the accounts API: requests in, outcomes out."""

from __future__ import annotations

import gzip
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

from meter_worker.backend import AccountUnknown, Answered, Interrupted, Refused, Unavailable
from meter_worker.http_link import LinkFailed, LinkInterrupted
from meter_worker.verdicts import judge_account, judge_delivery
from meter_worker.wire import header_text, request_body

if TYPE_CHECKING:
    from meter_lib.clock import Clock
    from meter_worker.backend import AccountAnswer, Outcome, Request
    from meter_worker.http_link import HttpLink

__all__ = ["RestAccounts", "RestBackend"]

_logger = logging.getLogger("meter_worker")


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
        self._packs = compression == "gzip"
        # Until a packed request was taken, it is not known whether the backend can read any.
        self._is_on_trial = self._packs
        self._clock = clock

    def deliver(self, request: Request) -> Outcome:
        """Send the request once and return what became of it.

        Packed, where that was asked for. If the backend will have none of the first packed ones,
        it is sent once more as it is: where that is taken, nothing is packed any more.
        """
        packs = self._packs
        outcome = self._send(request, packs=packs)
        if packs and self._is_on_trial:
            if isinstance(outcome, Answered):
                self._is_on_trial = False
            elif _may_be_for_its_coding(outcome):
                outcome = self._send(request, packs=False)
                if isinstance(outcome, Answered):
                    self._pack_no_more()
        return outcome

    def _pack_no_more(self) -> None:
        if self._packs:
            self._packs = False
            _logger.warning(
                "the events API takes no gzip (METER_COMPRESSION); requests go as they are",
                extra={"event": "compression_off"},
            )

    def _send(self, request: Request, *, packs: bool) -> Outcome:
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
        if packs:
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


def _may_be_for_its_coding(outcome: Outcome) -> bool:
    """Whether it was not taken, perhaps, because it could not be unpacked (RFC 9110, 15.5.16)."""
    if isinstance(outcome, Refused):
        return outcome.reason == "rejected"
    return isinstance(outcome, Unavailable) and outcome.wants_an_operator


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
