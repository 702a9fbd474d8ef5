"""One suite for both ports to the network: what the fakes promise, the real adapters keep.

Each promise is tried on the scripted fakes and on the adapters against the sandbox; otherwise the
fakes would be fiction.
"""
# ruff: noqa: D102 - what the methods of both peers mean is said once, at Peer

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from meter_lib.clock import SystemClock
from meter_worker.backend import (
    AccountFound,
    AccountUnknown,
    Answered,
    Delivered,
    Interrupted,
    Refused,
    Rejected,
    Request,
    Retriable,
    Unavailable,
)
from meter_worker.http_link import HttpLink
from meter_worker.rest_backend import RestAccounts, RestBackend
from meter_worker.sandbox import Sandbox, customer_id_of
from tests.fakes import ScriptedAccounts, ScriptedBackend, each, refuse_where, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meter_worker.backend import AccountsApi, Backend, Outcome


class Peer(Protocol):
    """A backend and an accounts API, and the ways in which they can be made to answer."""

    backend: Backend
    accounts: AccountsApi

    @property
    def stored(self) -> list[str]:
        """The idempotency keys of what is stored, in order."""

    def fail_for_one(self, meter_id: str, code: int) -> None:
        """Give records of this meter an error of their own."""

    def refuse_whole(self, meter_id: str) -> None:
        """Refuse requests with records of this meter as a whole."""

    def refuse_as_too_large(self) -> None:
        """Answer that the body is too large."""

    def be_busy(self, retry_after: int) -> None:
        """Ask both APIs' clients to come again later."""

    def be_down(self) -> None:
        """Give no answer at either API."""

    def answer_with_a_login_page(self) -> None:
        """Answer 200 at both APIs, as a captive portal does."""

    def stall(self) -> None:
        """Take requests at either API and never answer."""

    def forget(self, tenant_id: str) -> None:
        """Have no account of this tenant."""


class Fakes:
    """The fakes, told to answer."""

    def __init__(self) -> None:
        self.backend = ScriptedBackend()
        self.accounts = ScriptedAccounts()

    @property
    def stored(self) -> list[str]:
        return self.backend.stored_keys

    def fail_for_one(self, meter_id: str, code: int) -> None:
        verdict = (
            Rejected("rejected", "no") if code == 50002 else Retriable(f"error_code {code}: no")
        )
        self.backend.otherwise = each(
            lambda value: verdict if value["meter_id"] == meter_id else Delivered()
        )

    def refuse_whole(self, meter_id: str) -> None:
        self.backend.otherwise = refuse_where(lambda value: value["meter_id"] == meter_id)

    def refuse_as_too_large(self) -> None:
        self.backend.otherwise = Refused("too_large", "HTTP 413")

    def be_busy(self, retry_after: int) -> None:
        self._answer_everything(Unavailable("HTTP 429", float(retry_after)))

    def be_down(self) -> None:
        self._answer_everything(Unavailable("connection reset"))

    def answer_with_a_login_page(self) -> None:
        self._answer_everything(Unavailable("a login page"))

    def stall(self) -> None:
        self.backend.otherwise = self.backend.stall

    def forget(self, tenant_id: str) -> None:
        self.accounts.answers[tenant_id] = AccountUnknown("no account")

    def _answer_everything(self, outage: Unavailable) -> None:
        self.backend.otherwise = outage
        self.accounts.answers["t"] = outage


class Real:
    """The REST adapters, and a sandbox that is told to misbehave."""

    def __init__(self, sandbox: Sandbox, compression: str) -> None:
        clock = SystemClock()
        self.sandbox = sandbox
        self.backend = RestBackend(
            HttpLink(connect_timeout=5, read_timeout=20),
            stream_url=sandbox.url,
            topic="usage-events",
            compression=compression,
            clock=clock,
        )
        self.accounts = RestAccounts(
            HttpLink(connect_timeout=5, read_timeout=20), base_url=sandbox.url, clock=clock
        )

    @property
    def stored(self) -> list[str]:
        return [record.value["idempotency_key"] for record in self.sandbox.records]

    def fail_for_one(self, meter_id: str, code: int) -> None:
        self._misbehave("reject_records", match={"meter_id": meter_id}, error_code=code)

    def refuse_whole(self, meter_id: str) -> None:
        self._misbehave("refuse_records", match={"meter_id": meter_id})

    def refuse_as_too_large(self) -> None:
        self._misbehave("refuse", status=413)

    def be_busy(self, retry_after: int) -> None:
        self._misbehave("throttle", retry_after=retry_after, api="all")

    def be_down(self) -> None:
        self._misbehave("down", api="all")

    def answer_with_a_login_page(self) -> None:
        self._misbehave("captive_portal", api="all")

    def stall(self) -> None:
        self._misbehave("stall", api="all")

    def forget(self, tenant_id: str) -> None:
        self.sandbox.unknown_tenants.add(tenant_id)

    def _misbehave(self, fault: str, **parameters: Any) -> None:
        self.sandbox.heal()
        self.sandbox.fault(fault, **parameters)


@pytest.fixture(params=["fakes", "rest", "rest with gzip"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """The fakes, and the adapters over real sockets."""
    if request.param == "fakes":
        yield Fakes()
        return
    with Sandbox() as sandbox:
        real = Real(sandbox, "gzip" if request.param == "rest with gzip" else "none")
        yield real
        # Closes the connections, too.
        real.backend.interrupt()
        real.accounts.interrupt()


def request_of(*keys: str, meter_id: str = "m") -> Request:
    """Make a request with these records."""
    return Request("t", "d", "request-1", [record(key, meter_id) for key in keys])


def record(key: str, meter_id: str = "m") -> str:
    """Write a record."""
    return json.dumps({"value": {"idempotency_key": key, "meter_id": meter_id}})


def test_an_accepted_request_is_told_record_by_record(peer: Peer) -> None:
    """There is one verdict a record, and what is said to be delivered is stored, in order."""
    outcome = peer.backend.deliver(request_of("a", "b", "c"))

    assert repr(outcome) == repr(Answered((Delivered(), Delivered(), Delivered())))
    assert peer.stored == ["a", "b", "c"]


def test_the_same_request_may_be_delivered_again(peer: Peer) -> None:
    """Nothing below the flusher drops or joins what is sent twice."""
    again = [peer.backend.deliver(request_of("a")) for _ in range(2)]

    assert repr(again) == repr([Answered((Delivered(),))] * 2)
    assert peer.stored == ["a", "a"]


@pytest.mark.parametrize(("code", "kind"), [(50002, Rejected), (1, Retriable), (2, Retriable)])
def test_one_failed_record_does_not_hide_what_became_of_the_others(
    peer: Peer, code: int, kind: type[Any]
) -> None:
    """The verdicts are in the order of the records; those beside the failed one are stored."""
    peer.fail_for_one("bad", code)
    request = Request("t", "d", "r", [record("a"), record("b", "bad"), record("c")])
    outcome = peer.backend.deliver(request)

    assert isinstance(outcome, Answered)
    assert [type(verdict) for verdict in outcome.verdicts] == [Delivered, kind, Delivered]
    assert outcome.outage is None
    assert peer.stored == ["a", "c"]


def test_a_refused_request_has_stored_nothing(peer: Peer) -> None:
    """One bad record refuses them all, with a reason for people."""
    peer.refuse_whole("bad")
    outcome = peer.backend.deliver(request_of("a", "b", meter_id="bad"))

    assert isinstance(outcome, Refused)
    assert (outcome.reason, bool(outcome.detail)) == ("rejected", True)
    assert peer.stored == []


def test_a_request_that_is_too_large_says_so(peer: Peer) -> None:
    """It is a refusal of its own kind."""
    peer.refuse_as_too_large()
    outcome = peer.backend.deliver(request_of("a"))

    assert isinstance(outcome, Refused)
    assert (outcome.reason, bool(outcome.detail)) == ("too_large", True)


def test_a_busy_peer_says_when_to_come_again(peer: Peer) -> None:
    """What it asks for arrives as seconds, at either API."""
    peer.be_busy(7)
    for outcome in (peer.backend.deliver(request_of("a")), peer.accounts.look_up("t")):
        assert isinstance(outcome, Unavailable)
        assert (outcome.retry_after_seconds, outcome.timed_out) == (7.0, False)


def test_no_answer_and_a_strangers_answer_are_outages(peer: Peer) -> None:
    """Neither raises, neither is a success, and each says why."""
    for trouble in (peer.be_down, peer.answer_with_a_login_page):
        trouble()
        for outcome in (peer.backend.deliver(request_of("a")), peer.accounts.look_up("t")):
            assert isinstance(outcome, Unavailable)
            assert (outcome.retry_after_seconds, outcome.timed_out) == (None, False)
            assert outcome.detail


def test_a_stalled_request_is_broken_off_from_another_thread(peer: Peer) -> None:
    """`interrupt` ends what is under way, and every further request at once."""
    peer.stall()
    outcomes: list[Outcome] = []
    waiting = threading.Thread(
        target=lambda: outcomes.append(peer.backend.deliver(request_of("a")))
    )
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()

    peer.backend.interrupt()
    waiting.join(10)
    outcomes.append(peer.backend.deliver(request_of("b")))

    assert repr(outcomes) == repr([Interrupted(), Interrupted()])
    assert peer.stored == []


def test_an_account_is_found_with_its_id_as_json(peer: Peer) -> None:
    """The id is JSON text, ready for the record; what a tenant is called does not matter."""
    for tenant in ("t", "Käufer 7/süd?x=1#y%20+", "設備"):
        answer = peer.accounts.look_up(tenant)
        expected = customer_id_of(tenant) if isinstance(peer, Real) else f"customer of {tenant}"
        assert isinstance(answer, AccountFound)
        assert json.loads(answer.customer_id) == expected


def test_an_account_that_is_not_there_is_not_an_outage(peer: Peer) -> None:
    """The API's own word that there is none is told apart from its silence."""
    peer.forget("new")
    answer = peer.accounts.look_up("new")

    assert isinstance(answer, AccountUnknown)
    assert answer.detail
    assert isinstance(peer.accounts.look_up("t"), AccountFound)


def test_an_interrupted_accounts_api_answers_nothing_more(peer: Peer) -> None:
    """After `interrupt` no question is asked."""
    peer.accounts.interrupt()

    assert repr(peer.accounts.look_up("t")) == repr(Interrupted())


@pytest.mark.parametrize("tenant", [".", ".."])
def test_a_tenant_that_a_path_cannot_hold_is_never_asked_about(tenant: str) -> None:
    """The way to its account would lead to the list of all, whose first is somebody else's."""
    with Sandbox(accounts_as_list=True) as sandbox:
        answer = Real(sandbox, "none").accounts.look_up(tenant)
        asked = sandbox.requests

    assert isinstance(answer, AccountUnknown)
    assert (answer.detail, asked) == (
        f"a tenant called {tenant!r} cannot be asked for by a URL",
        [],
    )


@pytest.mark.parametrize("tenant", ["...", "a/../b", "%2e%2e", "//x", "http://x/", "a;b?c#d%e+f"])
def test_any_other_tenant_is_asked_about_under_its_own_name(tenant: str) -> None:
    """What would mean something in a path is encoded, and comes out at the other end as it was."""
    with Sandbox() as sandbox:
        real = Real(sandbox, "none")
        answer = real.accounts.look_up(tenant)
        real.accounts.interrupt()

    assert repr(answer) == repr(AccountFound(json.dumps(customer_id_of(tenant))))


def test_the_records_arrive_byte_for_byte_with_their_headers() -> None:
    """What the adapter sends is the body of the wire, under the headers that the contract names."""
    with Sandbox() as sandbox:
        real = Real(sandbox, "none")
        request = Request("tä nt/1", 'd"1"', "abc", ['{"key":"k","value":{"ü":"😀","n":1}}'])
        real.backend.deliver(request)
        real.backend.interrupt()
        [stored] = sandbox.records
        [logged] = sandbox.requests

    assert (stored.key, stored.value_json) == ("k", '{"ü":"😀","n":1}')
    assert values(request) == [stored.value]
    sent = {name: logged.headers[name] for name in logged.headers if name != "host"}
    assert (logged.method, logged.path) == ("POST", "/topics/usage-events")
    assert sent == {
        "user-agent": sent["user-agent"],
        "accept-encoding": sent["accept-encoding"],
        "connection": "keep-alive",
        "accept": "application/vnd.kafka.v2+json, application/json",
        "content-type": "application/vnd.kafka.json.v2+json",
        "content-length": "53",
        "x-tenant-id": "t%C3%A4 nt/1",
        "x-device-id": 'd"1"',
        "idempotency-key": '"abc"',
    }
    assert sent["user-agent"].startswith("meter-lib/")
