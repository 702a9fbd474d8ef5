from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
import zlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
import requests

from meter_worker.sandbox import Sandbox, customer_id_of
from meter_worker.sandbox.exchange import Request
from meter_worker.sandbox.request_log import LOG_LIMIT, RequestLog

if TYPE_CHECKING:
    from collections.abc import Iterator

KAFKA_JSON = "application/vnd.kafka.json.v2+json"
PLAIN = "text/plain; charset=utf-8"
MIB = 1024 * 1024
COMMON = "after, api, device, fault, meter, tenant, times"
ALL_FAULTS = (
    "down, slow, stall, refuse, throttle, drop_reply, captive_portal, redirect, garbled, "
    "reject_records, refuse_records"
)
RETRY_AFTER_TAKES = "a number of seconds, or printable ASCII text, or null for none"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A sandbox that listens while the test runs."""
    with Sandbox() as running:
        yield running


def usage(key: str = "k-1", **members: Any) -> dict[str, Any]:
    """Make a record as the worker sends it, with this idempotency key."""
    return {"value": {"meter_id": "m", "total_usage": 24, "idempotency_key": key} | members}


def post(
    sandbox: Sandbox, *records: Any, body: bytes | None = None, **headers: str
) -> requests.Response:
    """Post records (or a body) to the known topic; a header's name has _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(
        f"{sandbox.url}/topics/usage-events",
        data=json.dumps({"records": records}).encode() if body is None else body,
        headers={"Content-Type": KAFKA_JSON} | named,
        timeout=5,
    )


def raw(sandbox: Sandbox, request: bytes) -> bytes:
    """Send these very bytes and give everything that comes until the connection ends."""
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) as client:
        client.sendall(request)
        received = b""
        while chunk := client.recv(MIB):
            received += chunk
    return received


def raw_post(body: bytes, *header_lines: str) -> bytes:
    """Write a produce request byte for byte, without a length of its own."""
    lines = ["POST /topics/usage-events HTTP/1.1", "Host: x", f"Content-Type: {KAFKA_JSON}"]
    return "\r\n".join([*lines, *header_lines, "", ""]).encode() + body


def seen(response: requests.Response) -> tuple[int, str, str]:
    """Give what a client can tell answers apart by."""
    return response.status_code, response.headers["Content-Type"], response.text


def stored_keys(sandbox: Sandbox) -> list[str]:
    """Give the idempotency keys in the order they were stored."""
    return [record.value["idempotency_key"] for record in sandbox.records]


def kafka_error(status: int, message: str, error_code: int | None = None) -> tuple[int, str, str]:
    """Write an error as the proxy does."""
    code = status if error_code is None else error_code
    return status, KAFKA_JSON, f'{{"error_code":{code},"message":"{message}"}}'


def offsets_body(entries: str) -> str:
    """Write the body of an answer with these entries as the proxy does."""
    return f'{{"key_schema_id":null,"offsets":[{entries}],"value_schema_id":null}}'


# The events API


def test_a_batch_is_answered_with_one_entry_a_record(sandbox: Sandbox) -> None:
    """The answer to a good batch is, byte for byte, the proxy's."""
    response = post(sandbox, usage("a"), usage("b"))

    assert seen(response) == (
        200,
        KAFKA_JSON,
        offsets_body('{"offset":0,"partition":1},{"offset":1,"partition":1}'),
    )


def test_a_stored_record_says_what_was_sent_and_where_it_lies(sandbox: Sandbox) -> None:
    """A stored record has its key and value, its place, and the headers it came with."""
    before = time.time_ns() // 1_000_000
    value = {"z": "ü", "a": {"b": [1, 2.5, None]}, "idempotency_key": "k"}
    record = {"key": "cust-1", "value": value}
    response = post(sandbox, record, x_tenant_id="t%C3%A4", x_device_id="d", Idempotency_Key='"r"')
    [place] = response.json()["offsets"]
    [stored] = requests.get(f"{sandbox.url}/sandbox/records", timeout=5).json()["records"]

    assert before <= stored.pop("received_at") <= time.time_ns() // 1_000_000
    assert stored == {
        "topic": "usage-events",
        "partition": place["partition"],
        "offset": place["offset"],
        "key": "cust-1",
        "value": value,
        "tenant_id": "t%C3%A4",
        "device_id": "d",
        "request_key": '"r"',
    }
    assert sandbox.records[0].value_json == (
        '{"z":"ü","a":{"b":[1,2.5,null]},"idempotency_key":"k"}'
    )


def test_equal_keys_share_a_partition_and_its_offsets_grow(sandbox: Sandbox) -> None:
    """Records of one key lie in one partition, at growing offsets, whatever batch they came in."""
    for number in range(6):
        post(
            sandbox, {"key": "cust-1"} | usage(f"one-{number}"), {"key": 2} | usage(f"two-{number}")
        )
    places = [(r.partition, r.offset) for r in sandbox.records if r.key == "cust-1"]

    assert len({partition for partition, _ in places}) == 1
    assert [offset for _, offset in places] == sorted({offset for _, offset in places})


def test_batches_without_keys_take_turns_among_the_partitions(sandbox: Sandbox) -> None:
    """A batch without keys lies in one partition, and the next batch in another."""
    for number in range(4):
        post(sandbox, usage(f"a-{number}"), usage(f"b-{number}"))

    assert [record.partition for record in sandbox.records] == [1, 1, 2, 2, 0, 0, 1, 1]


@pytest.mark.parametrize("value", [None, {}, [], 0, False, ""])
def test_a_falsy_value_is_stored_as_an_empty_message(sandbox: Sandbox, value: Any) -> None:
    """A falsy value is answered with offset -1 in partition 0, and stored as an empty message."""
    response = post(sandbox, {"value": value})

    assert response.json()["offsets"] == [{"offset": -1, "partition": 0}]
    assert [record.value for record in sandbox.records] == [None]


@pytest.mark.parametrize(
    ("key", "stored"), [("c", "c"), (7, 7), ({"a": 1}, {"a": 1}), (0, ""), ("", ""), (None, None)]
)
def test_a_falsy_key_becomes_an_empty_one(sandbox: Sandbox, key: Any, stored: Any) -> None:
    """A key may be any JSON; a falsy one is empty, and null is none."""
    post(sandbox, {"key": key} | usage())

    assert [record.key for record in sandbox.records] == [stored]


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("-9223372036854775809", "-9.223372036854776e+18"),
        ("0.1000000000000000055", "0.1"),
        ("12345678901234567.89", "1.2345678901234568e+16"),
    ],
)
def test_numbers_change_silently_as_they_do_in_the_proxy(
    sandbox: Sandbox, sent: str, stored: str
) -> None:
    """What 64 bits or a double cannot hold is stored as something else, without a word."""
    response = post(sandbox, body=b'{"records":[{"value":{"n":%s}}]}' % sent.encode())

    assert (response.status_code, sandbox.records[0].value_json) == (200, f'{{"n":{stored}}}')


def test_of_duplicate_names_the_last_one_stays(sandbox: Sandbox) -> None:
    """A value with a name twice is stored with the last of the two."""
    post(sandbox, body=b'{"records":[{"value":{"n":1,"n":2}}]}')

    assert sandbox.records[0].value_json == '{"n":2}'


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (
            b'{"records":[{"value":{"a":1},"headers":[]}]}',
            kafka_error(422, "Invalid request format"),
        ),
        (b'{"records":[{"value":{"a":1}}],"x":1}', kafka_error(422, "Invalid request format")),
        (b'{"records":[]}', kafka_error(422, "Invalid request format")),
        (b"{}", kafka_error(422, "Invalid request format")),
        (b'{"records":[1]}', kafka_error(400, "Produce record must be an object")),
        (b'{"records":{"value":1}}', kafka_error(400, "'records' must be an array")),
        (
            b'{"records":[{"value":{"a":1},"partition":"abc"}]}',
            kafka_error(500, "partition is not a valid int: abc"),
        ),
        (b'{"records":[', (400, PLAIN, "Invalid request JSON body")),
        (b'{"records":[{"value":{"a":NaN}}]}', (400, PLAIN, "Invalid request JSON body")),
        (b'{"records":[{"value":{"a":-Infinity}}]}', (400, PLAIN, "Invalid request JSON body")),
        (b'{"records":[{"value":{"a":1e400}}]}', (400, PLAIN, "Invalid request JSON body")),
        (
            b'{"records":[{"value":{"a":%s}}]}' % (b"9" * 5000),
            (400, PLAIN, "Invalid request JSON body"),
        ),
        (b'{"records":[{"value":{"a":"\\ud800"}}]}', (400, PLAIN, "Invalid request JSON body")),
        (b"[" * 100_000, (400, PLAIN, "Invalid request JSON body")),
        (b"", (400, PLAIN, "Missing request JSON body")),
        (b"[]", (400, "application/json", '{"error_code":400,"message":"Malformed request"}')),
        (b'"x"', (400, "application/json", '{"error_code":400,"message":"Malformed request"}')),
        (b'{"records":"\xff"}', (400, PLAIN, "Request body is not valid utf-8")),
        (
            b'{"records":[{"value":{"a":"%s"}}]}' % (b"x" * MIB),
            (
                413,
                "application/json",
                '{"error_code":413,"message":"HTTP Request Entity Too Large"}',
            ),
        ),
    ],
)
def test_a_body_is_refused_as_the_proxy_refuses_it(
    sandbox: Sandbox, body: bytes, answer: tuple[int, str, str]
) -> None:
    """Each senseless body has the proxy's status, type and text, and nothing of it is stored."""
    assert seen(post(sandbox, body=body)) == answer
    assert sandbox.count == 0


def test_one_bad_record_refuses_its_whole_batch(sandbox: Sandbox) -> None:
    """Where one record of a batch has an unknown field, its neighbours are not stored either."""
    response = post(sandbox, usage("a"), usage("b") | {"timestamp": 1}, usage("c"))

    assert (response.status_code, sandbox.count) == (422, 0)


def test_an_escaped_pair_of_surrogates_is_a_character_like_any_other(sandbox: Sandbox) -> None:
    """Only a lone surrogate is refused; a pair is stored as the character it stands for."""
    post(sandbox, body=b'{"records":[{"value":{"a":"\\ud83d\\ude00"}}]}')

    assert sandbox.records[0].value == {"a": "\N{GRINNING FACE}"}


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/xml", "multipart/form-data", "application/vnd.kafka.json.v3+json"],
)
def test_a_foreign_content_type_is_refused(sandbox: Sandbox, content_type: str) -> None:
    """A content type that the proxy does not know is answered 415."""
    response = post(sandbox, usage(), Content_Type=content_type)

    assert seen(response) == kafka_error(415, "HTTP 415 Unsupported Media Type")
    assert sandbox.count == 0


@pytest.mark.parametrize("content_type", ["application/json", "", "application/vnd.kafka.v2+json"])
def test_plain_json_is_taken_for_base64_and_refused(sandbox: Sandbox, content_type: str) -> None:
    """Without the exact content type the proxy takes the values for base64, and says so."""
    response = post(sandbox, {"value": {"a": 1}}, Content_Type=content_type)

    assert response.json() == {
        "error_code": 400,
        "message": 'data={"a":1}  is not a base64 string.',
    }
    assert (response.status_code, sandbox.count) == (400, 0)


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("text/html", 406),
        ("*/*", 200),
        ("application/json", 200),
        (f"{KAFKA_JSON}, application/json", 200),
    ],
)
def test_an_answer_that_cannot_be_accepted_is_not_given(
    sandbox: Sandbox, accept: str, status: int
) -> None:
    """A client that takes no JSON is answered 406."""
    assert post(sandbox, usage(), Accept=accept).status_code == status
    assert sandbox.count == (status == 200)


def test_an_unknown_topic_is_not_found() -> None:
    """Only the topic that the sandbox was given is there; another is answered 404 with 40401."""
    with Sandbox(topic="other events") as sandbox:
        known = requests.post(
            f"{sandbox.url}/topics/other%20events/",
            json={"records": [usage()]},
            headers={"Content-Type": f"{KAFKA_JSON}; charset=utf-8"},
            timeout=5,
        )
        unknown = post(sandbox, usage())

        assert seen(unknown) == kafka_error(404, "Topic usage-events not found", 40401)
        assert (known.status_code, [record.topic for record in sandbox.records]) == (
            200,
            ["other events"],
        )


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/", (404, PLAIN, "404: Not Found")),
        ("POST", "/topics", (404, PLAIN, "404: Not Found")),
        ("GET", "/topics/usage-events", (405, PLAIN, "405: Method Not Allowed")),
        ("PATCH", "/topics/usage-events", (405, PLAIN, "405: Method Not Allowed")),
        ("POST", "/v1alpha1/customer-accounts/tenant/t", (405, PLAIN, "405: Method Not Allowed")),
        ("GET", "/sandbox/nothing", (404, PLAIN, "404: Not Found")),
        ("POST", "/sandbox/faults", (405, PLAIN, "405: Method Not Allowed")),
    ],
)
def test_a_wrong_path_or_method_is_named_in_plain_text(
    sandbox: Sandbox, method: str, path: str, answer: tuple[int, str, str]
) -> None:
    """Where nothing is, the answer is 404 or 405 in plain text."""
    assert seen(requests.request(method, sandbox.url + path, timeout=5)) == answer


def test_a_record_for_a_missing_partition_fails_alone(sandbox: Sandbox) -> None:
    """A record that names a partition the topic lacks gets an error; the others are stored."""
    response = post(sandbox, usage("a") | {"partition": 77}, usage("b") | {"partition": 2})

    assert (response.status_code, response.json()["offsets"]) == (
        422,
        [
            {
                "error": "This request is for a topic or partition that does not exist on this "
                "broker.",
                "error_code": 2,
            },
            {"offset": 0, "partition": 2},
        ],
    )
    assert stored_keys(sandbox) == ["b"]


# Bodies and connections


BODY = b'{"records":[{"value":{"idempotency_key":"k"}}]}'
RAW_DEFLATE = zlib.compressobj(wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", RAW_DEFLATE.compress(BODY) + RAW_DEFLATE.flush()),
        ("identity", BODY),
    ],
)
def test_compressed_bodies_are_taken(sandbox: Sandbox, encoding: str, body: bytes) -> None:
    """A body may be compressed with gzip, or with either form of deflate."""
    assert post(sandbox, body=body, Content_Encoding=encoding).status_code == 200
    assert stored_keys(sandbox) == ["k"]


@pytest.mark.parametrize("body", [b"no gzip at all", gzip.compress(BODY, mtime=0)[:-9]])
def test_broken_gzip_is_an_internal_error(sandbox: Sandbox, body: bytes) -> None:
    """A body that is not the gzip it claims to be is answered 500 in plain text."""
    response = post(sandbox, body=body, Content_Encoding="gzip")

    assert seen(response) == (500, PLAIN, "Internal Server Error")


def test_the_limit_counts_the_bytes_after_decompression(sandbox: Sandbox) -> None:
    """A small compressed body is refused if it is too large once decompressed."""
    bomb = gzip.compress(b" " * (MIB + 1 - len(BODY)) + BODY)
    largest = gzip.compress(b" " * (MIB - len(BODY)) + BODY)

    assert post(sandbox, body=bomb, Content_Encoding="gzip").status_code == 413
    assert post(sandbox, body=largest, Content_Encoding="gzip").status_code == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        raw_post(b"", "Content-Length: 67108865"),
        raw_post(b"4000001\r\n", "Transfer-Encoding: chunked"),
    ],
)
def test_an_endless_body_is_not_read(sandbox: Sandbox, request_bytes: bytes) -> None:
    """A body of more than 64 MiB is refused before it is read, and the connection ends."""
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) as client:
        client.sendall(request_bytes)
        answer = client.recv(MIB)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in answer


def test_a_chunked_body_is_put_together(sandbox: Sandbox) -> None:
    """A body may come in chunks, with extensions and trailers."""
    head, tail = BODY[:10], BODY[10:]
    chunks = b"a;x=1\r\n%b\r\n%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (head, len(tail), tail)
    answer = raw(sandbox, raw_post(chunks, "Transfer-Encoding: chunked", "Connection: close"))

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert stored_keys(sandbox) == ["k"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        raw_post(b"+5\r\nabcde\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        raw_post(b"2\r\nabcde\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        raw_post(b"0\r\n" + b"a: b\r\n" * 101, "Transfer-Encoding: chunked"),
        raw_post(BODY, "Transfer-Encoding: gzip"),
        raw_post(BODY, "Transfer-Encoding: chunked", "Content-Length: 3"),
        raw_post(BODY, "Content-Length: 3", "Content-Length: 4"),
        raw_post(BODY, "Content-Length: -3"),
        b"nonsense\r\n\r\n",
    ],
)
def test_a_request_that_cannot_be_delimited_is_refused(
    sandbox: Sandbox, request_bytes: bytes
) -> None:
    """Where nobody can say for sure where a request ends, it is answered 400 and cut off."""
    head, _, body = raw(sandbox, request_bytes).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert head.endswith(b"\r\nConnection: close")
    assert body == b"400: Bad Request"
    assert sandbox.count == 0


def test_a_client_may_wait_to_be_asked_for_the_body(sandbox: Sandbox) -> None:
    """A client that expects 100 Continue gets it before it has sent the body."""
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) as client:
        client.sendall(
            raw_post(
                b"", "Expect: 100-continue", f"Content-Length: {len(BODY)}", "Connection: close"
            )
        )
        interim = client.recv(MIB)
        client.sendall(BODY)
        answer = client.recv(MIB)

    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_one_connection_takes_many_requests(sandbox: Sandbox) -> None:
    """Answers of any kind leave the connection open for the next request."""
    client = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=5)
    client.connect()
    first_socket = client.sock
    statuses = []
    for body in (BODY, b"", b" " * (MIB + 1), BODY):
        client.request("POST", "/topics/usage-events", body, {"Content-Type": KAFKA_JSON})
        response = client.getresponse()
        response.read()
        statuses.append((response.status, client.sock is first_socket))
    client.close()

    assert statuses == [(200, True), (400, True), (413, True), (200, True)]


def test_requests_may_be_sent_before_the_answers_are_read(sandbox: Sandbox) -> None:
    """Pipelined requests are answered one by one, in their order."""
    length = f"Content-Length: {len(BODY)}"
    answers = raw(sandbox, raw_post(BODY, length) + raw_post(BODY, length, "Connection: close"))

    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert stored_keys(sandbox) == ["k", "k"]


def test_an_old_client_is_served_and_its_connection_closed(sandbox: Sandbox) -> None:
    """HTTP/1.0 is answered, and the connection ends with the answer."""
    request = raw_post(BODY, f"Content-Length: {len(BODY)}").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    answer = raw(sandbox, request)

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in answer


def test_an_idle_connection_is_closed() -> None:
    """A connection on which nothing comes for the idle time is closed without a word."""
    with Sandbox(idle_seconds=0.1) as sandbox:
        assert raw(sandbox, b"") == b""


def test_too_many_connections_are_closed_as_they_come(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond its limit of open connections the sandbox takes no further one."""
    monkeypatch.setattr("meter_worker.sandbox.listener.CONNECTIONS_LIMIT", 1)
    with requests.Session() as first:
        first.get(f"{sandbox.url}/sandbox/faults", timeout=5)

        assert raw(sandbox, b"") == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        raw_post(BODY[:-1], f"Content-Length: {len(BODY)}"),
        raw_post(b"%x\r\n%b" % (len(BODY), BODY[:-1]), "Transfer-Encoding: chunked"),
        raw_post(b"%x\r\n%b\r\n" % (len(BODY), BODY), "Transfer-Encoding: chunked"),
        raw_post(b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY), "Transfer-Encoding: chunked"),
    ],
)
def test_a_request_cut_off_in_its_body_is_not_stored(
    sandbox: Sandbox, request_bytes: bytes
) -> None:
    """A client that goes away in the middle of its body has sent nothing."""
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) as client:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        answer = client.recv(MIB)

    assert (answer, sandbox.count, sandbox.requests) == (b"", 0, [])


# The accounts API


def account(sandbox: Sandbox, path: str, **headers: str) -> requests.Response:
    """Ask for an account below one of the two doors."""
    return requests.get(f"{sandbox.url}{path}", headers=headers, timeout=5)


def test_every_tenant_has_an_account(sandbox: Sandbox) -> None:
    """A tenant's account has an id that is always the same, and another tenant has another."""
    tenant = "a/ü ?#%25@+"
    path = "/v1alpha1/customer-accounts/tenant/a%2F%C3%BC%20%3F%23%2525%40+"
    response = account(sandbox, path)

    assert (response.status_code, response.headers["Content-Type"], response.json()) == (
        200,
        "application/json",
        {"id": customer_id_of(tenant), "tenant_id": tenant},
    )
    assert customer_id_of("tenant-1") == "cust-0a96abb33b07"
    assert customer_id_of("tenant-1") != customer_id_of("tenant-2")


def test_the_answer_may_be_a_list() -> None:
    """If wanted, the account is the first entry of a list."""
    with Sandbox(accounts_as_list=True) as sandbox:
        response = account(sandbox, "/v1alpha1/customer-accounts/tenant/t")

    assert response.json() == [{"id": customer_id_of("t"), "tenant_id": "t"}]


def test_unknown_tenants_have_no_account() -> None:
    """Who is unknown may change while the sandbox runs."""
    with Sandbox(unknown_tenants=["ghost"]) as sandbox:
        path = "/v1alpha1/customer-accounts/tenant/ghost"
        before = account(sandbox, path)
        sandbox.unknown_tenants.discard("ghost")
        known = account(sandbox, path).status_code
        sandbox.unknown_tenants |= {"ghost"}
        after = account(sandbox, path).status_code

    assert (before.status_code, before.json()) == (
        404,
        {"error_code": 404, "message": "No account for this tenant"},
    )
    assert (known, after) == (200, 404)


def test_the_portal_wants_its_key() -> None:
    """With an API key, the portal's form of the accounts API answers 401 to any other bearer."""
    inside, portal = (f"{door}/v1alpha1/customer-accounts/tenant/t" for door in ("", "/metering"))
    with Sandbox(api_key="secret") as sandbox:
        statuses = [
            account(sandbox, portal).status_code,
            account(sandbox, portal, authorization="Bearer wrong").status_code,
            account(sandbox, portal, authorization="Bearer secret").status_code,
            account(sandbox, inside).status_code,
        ]
    with Sandbox() as sandbox:
        open_portal = account(sandbox, portal).status_code

    assert (statuses, open_portal) == ([401, 401, 200, 200], 200)


# Looking inside


def records(sandbox: Sandbox, query: str = "") -> dict[str, Any]:
    """Ask for the stored records as a program would."""
    answer: dict[str, Any] = requests.get(f"{sandbox.url}/sandbox/records{query}", timeout=5).json()
    return answer


def test_copies_are_counted(sandbox: Sandbox) -> None:
    """The sandbox says how often each idempotency key is stored, over HTTP and in Python."""
    post(sandbox, usage("a"), usage("b"))
    post(sandbox, usage("a"))
    summary = {"count": 3, "distinct": 2, "duplicates": 1}
    answer = records(sandbox)

    assert records(sandbox, "?fields=summary") == summary
    assert {name: answer[name] for name in ("count", "distinct", "duplicates", "keys")} == {
        **summary,
        "keys": {"a": 2, "b": 1},
    }
    assert [record["value"]["idempotency_key"] for record in answer["records"]] == ["a", "b", "a"]
    assert (sandbox.count, sandbox.distinct, sandbox.duplicates, sandbox.keys) == (
        3,
        2,
        1,
        {"a": 2, "b": 1},
    )


def test_a_record_can_be_found_by_whom_it_is_about(sandbox: Sandbox) -> None:
    """Records are told apart by tenant, device and meter: by the value, else by the headers."""
    post(sandbox, usage("a", tenant_id="t 1", device_id="d"), x_tenant_id="t%201")
    post(sandbox, usage("b"), usage("c", meter_id="n"), x_tenant_id="t%201", x_device_id="e")
    post(sandbox, usage("d", tenant_id="t2"))

    found = {
        query: list(records(sandbox, query)["keys"])
        for query in ("?tenant=t+1", "?device=e", "?meter=n", "?tenant=t+1&meter=m", "?meter=no")
    }
    assert found == {
        "?tenant=t+1": ["a", "b", "c"],
        "?device=e": ["b", "c"],
        "?meter=n": ["c"],
        "?tenant=t+1&meter=m": ["a", "b"],
        "?meter=no": [],
    }
    assert records(sandbox, "?device=e&fields=summary") == {
        "count": 2,
        "distinct": 2,
        "duplicates": 0,
    }


def test_a_limit_shows_the_newest_records(sandbox: Sandbox) -> None:
    """With a limit only the newest records are shown, while the counts are of all."""
    post(sandbox, usage("a"), usage("b"), usage("c"))
    answer = records(sandbox, "?limit=2")

    assert (answer["count"], [r["value"]["idempotency_key"] for r in answer["records"]]) == (
        3,
        ["b", "c"],
    )
    assert records(sandbox, "?limit=0")["records"] == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "?tenat=t",
            "unknown parameter 'tenat'; there are tenant, device, meter, limit, fields",
        ),
        ("?limit=-1", "limit is a number, 0 or more"),
        ("?fields=all", "fields can only be summary"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused(
    sandbox: Sandbox, query: str, message: str
) -> None:
    """A misspelt parameter is named and not passed over."""
    assert records(sandbox, query) == {"error_code": 400, "message": message}


def test_the_store_can_be_emptied(sandbox: Sandbox) -> None:
    """Emptied, over HTTP or in Python, the sandbox has nothing, and offsets go on."""
    post(sandbox, {"key": "c"} | usage("a"))
    removed = requests.delete(f"{sandbox.url}/sandbox/records", timeout=5).json()
    emptied = (removed, sandbox.count, sandbox.distinct, sandbox.records)
    post(sandbox, {"key": "c"} | usage("a"))
    offsets = [record.offset for record in sandbox.records]
    sandbox.clear()

    assert emptied == ({"removed": 1}, 0, 0, [])
    assert (offsets, sandbox.count) == ([1], 0)


def test_requests_are_logged_without_secrets(sandbox: Sandbox) -> None:
    """The log says what was asked, with which headers, and what came of it; secrets are masked."""
    post(sandbox, usage("a"), usage("b"), Authorization="Bearer secret", x_tenant_id="t")
    post(sandbox, body=b"")
    records(sandbox)
    logged = requests.get(f"{sandbox.url}/sandbox/requests", timeout=5).json()

    assert logged == [asdict(request) for request in sandbox.requests]
    assert [(r["method"], r["path"], r["status"], r["records"]) for r in logged] == [
        ("POST", "/topics/usage-events", 200, 2),
        ("POST", "/topics/usage-events", 400, 0),
    ]
    assert logged[0]["headers"]["authorization"] == "Bearer ***"
    assert logged[0]["headers"]["x-tenant-id"] == "t"
    assert "secret" not in json.dumps(logged)


def test_the_request_log_is_bounded() -> None:
    """Only the last 10,000 requests are kept."""
    log = RequestLog()
    for number in range(LOG_LIMIT + 1):
        log.add(Request("GET", f"/{number}", {}, b"", 0), records=0)
    paths = [logged.path for logged in log.requests()]

    assert (len(paths), paths[0], paths[-1]) == (10_000, "/1", "/10000")


def test_nothing_is_printed(sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    """Serving, refusing and failing leave stdout and stderr alone."""
    post(sandbox, usage())
    raw(sandbox, b"nonsense\r\n\r\n")
    sandbox.fault("down", times=1)
    with pytest.raises(requests.ConnectionError):
        post(sandbox, usage())
    sandbox.stop()

    assert capfd.readouterr() == ("", "")


# Faults


def fate(sandbox: Sandbox, *keys: str, **headers: str) -> int | None:
    """Post usage with these keys; give the status, None where the connection broke."""
    try:
        return post(sandbox, *map(usage, keys), **headers).status_code
    except requests.ConnectionError:
        return None


def test_down_resets_the_connection(sandbox: Sandbox) -> None:
    """A backend that is down resets the connection, answers nothing and stores nothing."""
    sandbox.fault("down")
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) as client:
        client.sendall(raw_post(BODY, f"Content-Length: {len(BODY)}"))
        with pytest.raises(ConnectionResetError):
            client.recv(MIB)

    assert (sandbox.count, [r.status for r in sandbox.requests]) == (0, [None])


def test_slow_waits_and_then_answers(sandbox: Sandbox) -> None:
    """A slow backend takes its seconds, then does everything as ever."""
    sandbox.fault("slow", seconds=0.2)
    begun_at = time.monotonic()
    status = fate(sandbox, "a")

    assert (status, stored_keys(sandbox)) == (200, ["a"])
    assert time.monotonic() - begun_at >= 0.2


def test_slow_stores_what_its_client_gave_up(sandbox: Sandbox) -> None:
    """A client that hangs up does not take its request back."""
    sandbox.fault("slow", seconds=0.1, times=1)
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) as client:
        client.sendall(raw_post(BODY, f"Content-Length: {len(BODY)}"))
    deadline = time.monotonic() + 5
    while sandbox.count == 0 and time.monotonic() < deadline:
        time.sleep(0.01)

    assert stored_keys(sandbox) == ["k"]


def test_stall_never_answers(sandbox: Sandbox) -> None:
    """A stalled backend takes the request and answers nothing; the record is not stored."""
    sandbox.fault("stall")
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=0.2) as client:
        client.sendall(raw_post(BODY, f"Content-Length: {len(BODY)}"))
        with pytest.raises(TimeoutError):
            client.recv(MIB)

    assert (sandbox.count, [r.status for r in sandbox.requests]) == (0, [None])


def test_refuse_answers_with_the_given_error(sandbox: Sandbox) -> None:
    """A refusing backend answers with the wanted status and words, and stores nothing."""
    sandbox.fault("refuse", status=403, message="Forbidden", times=1)
    sandbox.fault("refuse", status=520, message="x", error_code=50003, times=1)
    answers = [seen(post(sandbox, usage())) for _ in range(2)]

    assert answers == [kafka_error(403, "Forbidden"), kafka_error(520, "x", 50003)]
    assert (sandbox.count, [r.status for r in sandbox.requests]) == (0, [403, 520])


@pytest.mark.parametrize(
    ("retry_after", "header"),
    [
        (3, "3"),
        (0.5, "0.5"),
        ("Wed, 21 Oct 2015 07:28:00 GMT",) * 2,
        ("soon", "soon"),
        (None, None),
    ],
)
def test_throttle_says_when_to_come_back(
    sandbox: Sandbox, retry_after: Any, header: str | None
) -> None:
    """A throttling backend answers 429 with the wanted Retry-After, sensible or not."""
    sandbox.fault("throttle", retry_after=retry_after)
    response = post(sandbox, usage())

    assert seen(response) == kafka_error(429, "HTTP 429 Too Many Requests")
    assert (response.headers.get("Retry-After"), sandbox.count) == (header, 0)


def test_drop_reply_stores_and_then_says_nothing(sandbox: Sandbox) -> None:
    """With a dropped reply the records are stored, and the client sees a reset."""
    sandbox.fault("drop_reply", times=1)

    assert (fate(sandbox, "a", "b"), stored_keys(sandbox)) == (None, ["a", "b"])
    assert (fate(sandbox, "a", "b"), sandbox.duplicates) == (200, 2)


def test_a_captive_portal_answers_with_a_login_page(sandbox: Sandbox) -> None:
    """Behind a captive portal everything is answered 200 with a page; nothing is stored."""
    sandbox.fault("captive_portal")
    status, content_type, page = seen(post(sandbox, usage()))

    assert (status, content_type, sandbox.count) == (200, "text/html; charset=utf-8", 0)
    assert "<title>Welcome to the guest network</title>" in page


def test_redirect_points_elsewhere(sandbox: Sandbox) -> None:
    """A redirecting backend answers 302 with the wanted place, and stores nothing."""
    sandbox.fault("redirect", location=f"{sandbox.url}/nowhere")
    response = requests.post(
        f"{sandbox.url}/topics/usage-events", data=BODY, allow_redirects=False, timeout=5
    )

    assert (response.status_code, response.headers["Location"], sandbox.count) == (
        302,
        f"{sandbox.url}/nowhere",
        0,
    )


@pytest.mark.parametrize(
    ("how", "body"),
    [
        ("text", "Everything is fine."),
        ("empty", ""),
        ("missing_offsets", "{}"),
        (
            "fewer_offsets",
            offsets_body('{"offset":0,"partition":0}'),
        ),
    ],
)
def test_a_garbled_answer_is_200_and_cannot_be_believed(
    sandbox: Sandbox, how: str, body: str
) -> None:
    """A garbled answer has the right status and type, and a body that proves nothing."""
    sandbox.fault("garbled", how=how)

    assert seen(post(sandbox, usage("a"), usage("b"))) == (200, KAFKA_JSON, body)
    assert sandbox.count == 0


def test_a_short_answer_ends_before_its_length(sandbox: Sandbox) -> None:
    """An answer cut short promises more bytes than come before the connection ends."""
    sandbox.fault("garbled", how="short")
    head, _, body = raw(sandbox, raw_post(BODY, f"Content-Length: {len(BODY)}")).partition(
        b"\r\n\r\n"
    )
    whole = offsets_body('{"offset":0,"partition":0}').encode()

    assert body == whole[: len(whole) // 2]
    assert f"\r\nContent-Length: {len(whole)}".encode() in head
    assert sandbox.count == 0


def test_a_garbled_answer_may_hide_a_success(sandbox: Sandbox) -> None:
    """If wanted, the records are stored although the answer is garbled."""
    sandbox.fault("garbled", how="fewer_offsets", stored=True)
    response = post(sandbox, usage("a"), usage("b"))

    assert (len(response.json()["offsets"]), stored_keys(sandbox)) == (1, ["a", "b"])


@pytest.mark.parametrize("match", [{"meter_id": "bad"}, {"idempotency_key": "b"}, {"seq": 2}])
def test_rejected_records_fail_and_their_neighbours_are_stored(
    sandbox: Sandbox, match: dict[str, Any]
) -> None:
    """A rejected record has an error in its place; the others of its request are stored."""
    sandbox.fault("reject_records", match=match, error_code=2, error="no")
    batch = [usage("a", seq=1), usage("b", seq=2, meter_id="bad"), usage("c", seq=3)]
    response = post(sandbox, *batch)

    assert (response.status_code, response.json()) == (
        422,
        {
            "key_schema_id": None,
            "offsets": [
                {"offset": 0, "partition": 1},
                {"error": "no", "error_code": 2},
                {"offset": 1, "partition": 1},
            ],
            "value_schema_id": None,
        },
    )
    assert stored_keys(sandbox) == ["a", "c"]


def test_a_rejected_record_is_rejected_for_good_unless_told_otherwise(sandbox: Sandbox) -> None:
    """By default the error is one that no retry changes, written as Confluent's proxy does."""
    sandbox.fault("reject_records", match={"meter_id": "bad"})

    assert post(sandbox, usage("a", meter_id="bad")).json()["offsets"] == [
        {
            "error": "rejected by the sandbox",
            "error_code": 50002,
            "offset": None,
            "partition": None,
        }
    ]


def test_a_poison_record_refuses_its_whole_request(sandbox: Sandbox) -> None:
    """A request with a refused record is refused as a whole; one without it is stored."""
    sandbox.fault("refuse_records", match={"idempotency_key": "b"})

    assert seen(post(sandbox, usage("a"), usage("b"))) == kafka_error(422, "Invalid request format")
    assert (fate(sandbox, "a"), stored_keys(sandbox)) == (200, ["a"])


def test_a_fault_strikes_after_and_as_often_as_told(sandbox: Sandbox) -> None:
    """A fault skips the first requests it is meant for, strikes the next ones, and is spent."""
    sandbox.fault("refuse", status=503, after=1, times=2)

    assert [fate(sandbox, "a") for _ in range(5)] == [200, 503, 503, 200, 200]
    assert sandbox.faults[0]["struck"] == 2


def test_the_first_fault_that_is_meant_strikes(sandbox: Sandbox) -> None:
    """Of several standing faults the first one strikes, and the next once that is spent."""
    sandbox.fault("refuse", status=500, times=1)
    sandbox.fault("refuse", status=503, times=1)

    assert [fate(sandbox, "a") for _ in range(3)] == [500, 503, 200]


def test_a_fault_strikes_only_whom_it_is_meant_for(sandbox: Sandbox) -> None:
    """A fault may be meant for a tenant, a device, a meter, or for them together."""
    sandbox.fault("refuse", status=501, tenant="t 1", meter="m")
    sandbox.fault("refuse", status=502, device="d")
    sandbox.fault("refuse", status=503, tenant="t2")

    assert [
        fate(sandbox, "a", x_tenant_id="t%201", x_device_id="e"),
        post(sandbox, usage(meter_id="n"), x_tenant_id="t%201").status_code,
        post(sandbox, usage(device_id="d")).status_code,
        fate(sandbox, "a", x_device_id="d", x_tenant_id="t2"),
        post(sandbox, body=b"", x_tenant_id="t2").status_code,
        fate(sandbox, "a"),
    ] == [501, 200, 502, 502, 503, 200]


@pytest.mark.parametrize(
    ("api", "statuses"),
    [("events", [503, 200, 404]), ("accounts", [200, 503, 404]), ("all", [503, 503, 503])],
)
def test_a_fault_strikes_the_api_it_is_meant_for(
    sandbox: Sandbox, api: str, statuses: list[int]
) -> None:
    """A fault strikes one API or all, and never what is below /sandbox."""
    sandbox.fault("refuse", status=503, api=api)

    assert [
        fate(sandbox, "a"),
        account(sandbox, "/v1alpha1/customer-accounts/tenant/t").status_code,
        account(sandbox, "/elsewhere").status_code,
    ] == statuses
    assert account(sandbox, "/sandbox/faults").status_code == 200


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        (
            {"fault": "refuse", "status": 500},
            (500, '{"error_code":500,"message":"refused by the sandbox"}'),
        ),
        ({"fault": "garbled"}, (200, "Everything is fine.")),
        ({"fault": "garbled", "how": "empty"}, (200, "")),
        ({"fault": "garbled", "how": "missing_offsets"}, (200, "{}")),
        ({"fault": "garbled", "how": "fewer_offsets"}, (200, "[]")),
        ({"fault": "slow", "seconds": 0}, (200, '{"id":"cust-e3b98a4da31a","tenant_id":"t"}')),
    ],
)
def test_faults_strike_the_accounts_api_in_its_own_words(
    sandbox: Sandbox, fault: dict[str, Any], answer: tuple[int, str]
) -> None:
    """A fault on the accounts API looks as if that API had it."""
    sandbox.fault(**fault, api="accounts", tenant="t")
    response = account(sandbox, "/v1alpha1/customer-accounts/tenant/t")

    assert seen(response) == (answer[0], "application/json", answer[1])


def test_a_fault_for_one_tenant_leaves_the_accounts_of_others_alone(sandbox: Sandbox) -> None:
    """On the accounts API a fault knows the tenant by the path."""
    sandbox.fault("down", api="accounts", tenant="a/b")
    with pytest.raises(requests.ConnectionError):
        account(sandbox, "/v1alpha1/customer-accounts/tenant/a%2Fb")

    assert account(sandbox, "/v1alpha1/customer-accounts/tenant/c").status_code == 200


def test_faults_can_be_set_shown_and_healed_over_http(sandbox: Sandbox) -> None:
    """PUT lets exactly these faults stand, GET shows them, DELETE heals."""
    url = f"{sandbox.url}/sandbox/faults"
    sandbox.fault("down")
    put = requests.put(url, json=[{"fault": "refuse", "status": 503, "times": 1}], timeout=5)
    struck = [fate(sandbox, "a"), fate(sandbox, "a")]
    shown = {
        "fault": "refuse",
        "times": 1,
        "after": 0,
        "api": "events",
        "tenant": None,
        "device": None,
        "meter": None,
        "status": 503,
        "message": "refused by the sandbox",
        "error_code": None,
    }

    assert (put.status_code, put.json()) == (200, [shown | {"struck": 0}])
    assert (struck, requests.get(url, timeout=5).json()) == ([503, 200], [shown | {"struck": 1}])
    assert (requests.delete(url, timeout=5).json(), sandbox.faults) == ([], [])


def test_healed_the_backend_is_as_ever(sandbox: Sandbox) -> None:
    """After heal no fault strikes any more."""
    sandbox.fault("down")
    sandbox.heal()

    assert (fate(sandbox, "a"), sandbox.faults) == (200, [])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            {"fault": "dwon"},
            f"unknown fault 'dwon'; there are {ALL_FAULTS}",
        ),
        (
            {"fault": ["down"]},
            f"unknown fault ['down']; there are {ALL_FAULTS}",
        ),
        (
            {"fault": "slow", "second": 1},
            f"slow: unknown parameter 'second'; it takes seconds, {COMMON}",
        ),
        ({"fault": "slow"}, "slow: the parameter 'seconds' is missing"),
        ({"fault": "slow", "seconds": "1"}, "slow: seconds is 0 to 86400"),
        ({"fault": "slow", "seconds": True}, "slow: seconds is 0 to 86400"),
        ({"fault": "slow", "seconds": 86401}, "slow: seconds is 0 to 86400"),
        ({"fault": "refuse", "status": 200}, "refuse: status is 400 to 599"),
        ({"fault": "refuse", "status": 500, "message": 1}, "refuse: message is text"),
        (
            {"fault": "throttle", "retry_after": "1\r\nX: y"},
            f"throttle: retry_after is {RETRY_AFTER_TAKES}",
        ),
        ({"fault": "redirect", "location": "\n"}, "redirect: location is printable ASCII text"),
        (
            {"fault": "garbled", "how": "badly"},
            "garbled: how is one of text, short, empty, missing_offsets, fewer_offsets",
        ),
        (
            {"fault": "reject_records", "match": {}},
            'reject_records: match names members of the value, such as {"meter_id": "m"}',
        ),
        (
            {"fault": "reject_records", "match": {"seq": 1}, "error_code": "x"},
            "reject_records: error_code is a number",
        ),
        ({"fault": "down", "times": 0}, "down: times is 1 or more, or null"),
        ({"fault": "down", "after": -1}, "down: after is 0 or more"),
        ({"fault": "down", "api": "both"}, "down: api is one of events, accounts, all"),
        ({"fault": "down", "tenant": 1}, "down: tenant is text"),
        ("down", 'a fault is an object such as {"fault": "down"}'),
    ],
)
def test_a_fault_that_cannot_be_meant_is_refused(
    sandbox: Sandbox, fault: Any, message: str
) -> None:
    """A wrong fault is refused by what is wrong with it, and those that stand stay as they were."""
    sandbox.fault("stall", api="accounts")
    standing = sandbox.faults
    response = requests.put(
        f"{sandbox.url}/sandbox/faults", json=[{"fault": "down"}, fault], timeout=5
    )

    assert (response.status_code, response.json()) == (
        400,
        {"error_code": 400, "message": f"fault 2: {message}"},
    )
    if isinstance(fault, dict):
        with pytest.raises(ValueError, match=r".") as refused:
            sandbox.fault(**fault)
        assert str(refused.value) == message
    assert sandbox.faults == standing


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"fault": "down"}, 'the faults are a list such as [{"fault": "down"}]'),
        ([{"fault": "down"}] * 1001, "no more than 1000 faults"),
    ],
)
def test_what_is_no_list_of_faults_is_refused(sandbox: Sandbox, body: Any, message: str) -> None:
    """Faults are put as one list, and there are not too many of them."""
    response = requests.put(f"{sandbox.url}/sandbox/faults", json=body, timeout=5)

    assert (response.status_code, response.json()) == (400, {"error_code": 400, "message": message})
    assert sandbox.faults == []


# Starting and stopping


def test_stopped_it_refuses_and_started_again_it_is_where_it_was(sandbox: Sandbox) -> None:
    """Over a stop the port, the records and the faults stay; in between connections are refused."""
    sandbox.fault("refuse", status=503, after=1)
    fate(sandbox, "a")
    url = sandbox.url
    sandbox.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", sandbox.port), timeout=5)
    sandbox.start()

    assert (sandbox.url, stored_keys(sandbox), fate(sandbox, "b")) == (url, ["a"], 503)


def test_starting_and_stopping_twice_does_nothing_more(sandbox: Sandbox) -> None:
    """A sandbox that runs goes on when started, and a stopped one stays stopped."""
    port = sandbox.port
    sandbox.start()
    assert (sandbox.port, fate(sandbox, "a")) == (port, 200)
    sandbox.stop()
    sandbox.stop()
    assert fate(sandbox, "a") is None


def test_stop_does_not_wait_for_those_who_wait(sandbox: Sandbox) -> None:
    """With stalled, slow and idle clients stop returns within 2 seconds, and nothing is stored."""
    sandbox.fault("stall", times=5)
    sandbox.fault("slow", seconds=60)
    clients = [socket.create_connection(("127.0.0.1", sandbox.port), timeout=5) for _ in range(11)]
    for client in clients[:10]:
        client.sendall(raw_post(BODY, f"Content-Length: {len(BODY)}"))
    deadline = time.monotonic() + 5
    while len(sandbox.requests) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    begun_at = time.monotonic()
    sandbox.stop()
    took = time.monotonic() - begun_at
    for client in clients:
        client.close()

    assert took < 2
    assert (sandbox.count, [r.status for r in sandbox.requests]) == (0, [None] * 10)
    assert not [t for t in threading.enumerate() if t.name.startswith("meter-sandbox")]


def test_a_busy_port_is_named(sandbox: Sandbox) -> None:
    """A port that another program has is refused with an OSError that names it."""
    second = Sandbox(port=sandbox.port)
    with pytest.raises(OSError, match=f"cannot listen on port {sandbox.port} of 127.0.0.1: "):
        second.start()

    assert second.count == 0


def test_a_port_that_cannot_be_is_refused() -> None:
    """A port beyond 65535 is refused at once."""
    with pytest.raises(ValueError, match="port is 0 to 65535, not 65536"):
        Sandbox(port=65_536)


def test_requests_of_many_clients_are_all_stored(sandbox: Sandbox) -> None:
    """Clients that post at the same time lose nothing and share no offset."""
    keys = [[f"{client}-{number}" for number in range(20)] for client in range(8)]
    threads = [
        threading.Thread(target=lambda mine=mine: [fate(sandbox, key) for key in mine])
        for mine in keys
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sandbox.keys == {key: 1 for mine in keys for key in mine}
    assert len({(record.partition, record.offset) for record in sandbox.records}) == 160
