"""Answers as they come over the wire: of four proxies, of gateways, of portals, of broken peers.

Each with the number of records that were sent, and what is to become of them, in short:

    D delivered, R to be retried, X rejected, L rejected as too large, U undecided (one a record)
    refused, too large, key conflict    the request as a whole
    ambiguous                           some are stored, but not which
    outage, operator                    nobody is to blame; an operator is wanted
"""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any, NamedTuple

KAFKA = "application/vnd.kafka.v2+json"
JSON = "application/json"
HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"

REASONS = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    413: "Request Entity Too Large",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class Canned(NamedTuple):
    """An answer, byte by byte, and what it means."""

    name: str
    sent: int
    answer: bytes
    means: str
    rows: tuple[str, ...] = ()
    """Of the tables; none where no whole answer came."""
    dialect: str = "auto"


def answer(status: int, body: bytes | str | dict[str, Any], *headers: str) -> bytes:
    """Write an answer; these headers go before the length."""
    if isinstance(body, dict):
        body = json.dumps(body, separators=(",", ":"))
    if isinstance(body, str):
        body = body.encode()
    head = [f"HTTP/1.1 {status} {REASONS.get(status, 'Whatever')}", *headers]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def chunked(status: int, body: bytes, *headers: str) -> bytes:
    """Write an answer in two chunks."""
    head = [f"HTTP/1.1 {status} {REASONS[status]}", *headers, "Transfer-Encoding: chunked", "", ""]
    half = len(body) // 2
    parts = (body[:half], body[half:], b"")
    return "\r\n".join(head).encode() + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)


def offsets(*entries: Any) -> dict[str, Any]:
    """Write a body with these entries."""
    return {"key_schema_id": None, "offsets": list(entries), "value_schema_id": None}


def karapace(status: int, body: bytes | str | dict[str, Any], kind: str = KAFKA) -> bytes:
    """Answer as Karapace 6.2 does."""
    return answer(
        status,
        body,
        f"Content-Type: {kind}",
        "Access-Control-Allow-Origin: *",
        "Access-Control-Allow-Methods: DELETE, GET, OPTIONS, POST, PUT",
        "Access-Control-Allow-Headers: Authorization, Content-Type",
        "etag: 9d1c9a7bbc2f9d6f2a9a",
        "Date: Mon, 06 Oct 2025 22:12:32 GMT",
        "Server: Karapace/6.2.1",
    )


def confluent(status: int, body: dict[str, Any], *headers: str) -> bytes:
    """Answer as Confluent's REST proxy does."""
    return chunked(
        status,
        json.dumps(body, separators=(",", ":")).encode(),
        "Date: Mon, 06 Oct 2025 22:12:32 GMT",
        f"Content-Type: {KAFKA}",
        "Vary: Accept-Encoding, User-Agent",
        *headers,
    )


def strimzi(status: int, body: dict[str, Any]) -> bytes:
    """Answer as Strimzi's bridge does."""
    return answer(status, body, f"content-type: {KAFKA}")


def redpanda(status: int, body: dict[str, Any]) -> bytes:
    """Answer as Redpanda's HTTP proxy does."""
    return answer(
        status,
        body,
        "Server: Seastar httpd",
        "Date: Mon, 06 Oct 2025 22:12:32 GMT",
        f"Content-Type: {KAFKA}",
    )


def nginx(status: int, title: str, *headers: str) -> bytes:
    """Answer with the page that nginx has for a status."""
    page = (
        f"<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{status} {title}</h1></center>\r\n<hr><center>nginx/1.24.0</center>\r\n"
        "</body>\r\n</html>\r\n"
    )
    return answer(status, page, "Server: nginx/1.24.0", "Content-Type: text/html", *headers)


def error(code: int, message: str) -> dict[str, Any]:
    """Write the error that all proxies share."""
    return {"error_code": code, "message": message}


# Entries of each dialect.
K_OK = {"offset": 704, "partition": 0}
K_STALE = {
    "error": "This request is for a topic or partition that does not exist on this broker.",
    "error_code": 2,
}
K_LARGE = {
    "error": "The server has a configurable maximum message size to avoid unbounded memory "
    "allocation.",
    "error_code": 1,
}
K_LATE = {"error": "timed out waiting to publish message", "error_code": 1}
C_OK = {"partition": 1, "offset": 9, "error_code": None, "error": None}
S_OK = {"partition": 0, "offset": 5}
S_TOPIC = {
    "error_code": 404,
    "message": "Topic usage-events not present in metadata after 60000 ms.",
}
S_ANY = {"error_code": 500, "message": "Expiring 1 record(s) for usage-events-0:120000 ms"}
P_OK = {"partition": 0, "offset": 41}


def c_error(code: int, words: str) -> dict[str, Any]:
    """Write Confluent's entry of a failed record."""
    return {"partition": None, "offset": None, "error_code": code, "error": words}


def p_error(code: int, partition: int = 0) -> dict[str, Any]:
    """Write Redpanda's entry of a failed partition."""
    return {"partition": partition, "offset": -1, "error_code": code}


C_LARGE = c_error(
    50002,
    "The message is 2000096 bytes when serialized which is larger than 1048576, which is the value "
    "of the max.request.size configuration.",
)
PARTIAL = "partial failure in a success"
REFUSED = "refused"
NO_KAFKA = "not Kafka REST"

PROXIES = [
    Canned(
        "Karapace: stored",
        2,
        karapace(200, offsets({"offset": 620, "partition": 2}, {"offset": 621, "partition": 2})),
        "DD",
        ("success",),
    ),
    Canned(
        "Karapace: stored without waiting",
        1,
        karapace(200, offsets({"offset": -1, "partition": 0})),
        "D",
        ("success",),
    ),
    Canned(
        "Karapace: one of two stored",
        2,
        karapace(422, offsets(K_STALE, K_OK)),
        "RD",
        ("partial failure", "passing trouble"),
    ),
    Canned(
        "Karapace: one is too large",
        2,
        karapace(422, offsets(K_OK, K_LARGE)),
        "DL",
        ("partial failure", "record too large by its words"),
    ),
    Canned(
        "Karapace: its own time-out",
        2,
        karapace(422, offsets(K_LATE, K_OK)),
        "RD",
        ("partial failure", "Karapace's 1"),
    ),
    Canned(
        "Karapace: 1 for anything else",
        1,
        karapace(422, offsets({"error": "UnknownError", "error_code": 1})),
        "R",
        ("partial failure", "Karapace's 1"),
    ),
    Canned(
        "Karapace: all time out",
        3,
        karapace(422, offsets(K_LATE, K_LATE, K_LATE)),
        "RRR",
        ("partial failure", "Karapace's 1"),
    ),
    Canned(
        "Karapace: unknown member",
        500,
        karapace(422, error(422, "Invalid request format")),
        "refused",
        (REFUSED,),
    ),
    Canned(
        "Karapace: no object",
        1,
        karapace(400, error(400, "Produce record must be an object")),
        "refused",
        (REFUSED,),
    ),
    Canned(
        "Karapace: no JSON",
        1,
        karapace(400, "Invalid request JSON body", TEXT),
        "refused",
        (REFUSED,),
    ),
    Canned(
        "Karapace: no UTF-8",
        2,
        karapace(400, "Request body is not valid utf-8", TEXT),
        "refused",
        (REFUSED,),
    ),
    Canned(
        "Karapace: body too large",
        500,
        karapace(413, error(413, "HTTP Request Entity Too Large"), JSON),
        "too large",
        ("too large",),
    ),
    Canned(
        "Karapace: topic not found",
        1,
        karapace(404, error(40401, "Topic usage-events not found")),
        "operator",
        ("configuration",),
    ),
    Canned(
        "Karapace: broker away",
        1,
        karapace(403, {"message": "Forbidden"}),
        "operator",
        ("credentials",),
    ),
    Canned(
        "Karapace: wrong path",
        1,
        karapace(404, "404: Not Found", TEXT),
        "operator",
        ("configuration",),
    ),
    Canned(
        "Karapace: wrong method",
        1,
        karapace(405, "405: Method Not Allowed", TEXT),
        "operator",
        ("configuration",),
    ),
    Canned(
        "Karapace: wrong type",
        1,
        karapace(415, error(415, "HTTP 415 Unsupported Media Type")),
        "operator",
        ("configuration",),
    ),
    Canned(
        "Karapace: not acceptable",
        1,
        karapace(406, error(406, "HTTP 406 Not Acceptable")),
        "operator",
        ("configuration",),
    ),
    Canned(
        "Karapace: not ready",
        1,
        karapace(500, {"code": 500, "message": "Kafka node not ready"}),
        "outage",
        ("server error",),
    ),
    Canned(
        "Karapace: broken gzip",
        1,
        karapace(500, "500 Internal Server Error", TEXT),
        "outage",
        ("server error",),
    ),
    Canned("Confluent: stored", 2, confluent(200, offsets(C_OK, C_OK)), "DD", ("success",)),
    Canned(
        "Confluent: one of three stored",
        3,
        confluent(
            200,
            offsets(c_error(50003, "Expiring 1 record(s)"), C_OK, c_error(50002, "Invalid record")),
        ),
        "RDX",
        (PARTIAL, "passing trouble", "record rejected"),
    ),
    Canned(
        "Confluent: one is too large",
        2,
        confluent(200, offsets(C_OK, C_LARGE)),
        "DL",
        (PARTIAL, "record too large by its words"),
    ),
    Canned(
        "Confluent: 1, as documented",
        2,
        confluent(200, offsets(C_OK, c_error(1, "Non-retriable Kafka exception"))),
        "DX",
        (PARTIAL, "record rejected, as documented"),
    ),
    Canned(
        "Confluent: 2, as documented",
        2,
        confluent(200, offsets(c_error(2, "Retriable Kafka exception"), C_OK)),
        "RD",
        (PARTIAL, "passing trouble"),
    ),
    Canned(
        "Confluent: no rights for one",
        2,
        confluent(403, offsets(C_OK, c_error(40301, "Not authorized to access topics"))),
        "DU, operator",
        ("partial failure for want of rights", "rights at the broker"),
    ),
    Canned(
        "Confluent: not logged in at the broker",
        2,
        confluent(
            401, offsets(c_error(40101, "Authentication failed"), c_error(50003, "Expiring"))
        ),
        "UU, operator",
        ("partial failure for want of rights", "rights at the broker", "passing trouble"),
    ),
    Canned(
        "Confluent: no rights within a 200",
        2,
        confluent(200, offsets(c_error(40301, "Not authorized"), C_OK)),
        "UD, operator",
        (PARTIAL, "rights at the broker"),
    ),
    Canned(
        "Confluent: no records",
        1,
        confluent(422, error(42203, "Conversion of JSON to Avro failed")),
        "refused",
        (REFUSED,),
    ),
    Canned(
        "Confluent: unknown server",
        7,
        confluent(400, error(40002, "The server experienced an unexpected error")),
        "refused",
        (REFUSED,),
    ),
    Canned(
        "Confluent: credentials",
        1,
        confluent(401, error(401, "HTTP 401 Unauthorized"), 'WWW-Authenticate: basic realm="x"'),
        "operator",
        ("credentials",),
    ),
    Canned(
        "Confluent: discarded by the rate limiter",
        9,
        confluent(429, error(429007, "DoS filter limit exceeded"), "Retry-After: 7"),
        "outage for 7 s",
        ("come again",),
    ),
    Canned(
        "Confluent: not Kafka's own",
        9,
        confluent(500, error(500, "Unexpected non-Kafka exception returned by Kafka")),
        "outage",
        ("server error",),
    ),
    Canned(
        "Confluent: no broker",
        9,
        confluent(503, error(50302, "Broker not available")),
        "outage",
        ("server error",),
    ),
    Canned(
        "Confluent: leader not available",
        1,
        confluent(404, error(40404, "Leader not available")),
        "operator",
        ("configuration",),
    ),
    Canned("Strimzi: stored", 2, strimzi(200, {"offsets": [S_OK, S_OK]}), "DD", ("success",)),
    Canned(
        "Strimzi: any error",
        2,
        strimzi(200, {"offsets": [S_OK, S_ANY]}),
        "DR",
        (PARTIAL, "Strimzi's 500"),
    ),
    Canned(
        "Strimzi: one without metadata",
        2,
        strimzi(200, {"offsets": [S_OK, S_TOPIC]}),
        "DR",
        (PARTIAL, "topic missing"),
    ),
    Canned(
        "Strimzi: no topic",
        2,
        strimzi(200, {"offsets": [S_TOPIC, S_TOPIC]}),
        "operator",
        (PARTIAL, "topic missing"),
    ),
    Canned(
        "Strimzi: too large",
        1,
        strimzi(
            200,
            {
                "offsets": [
                    {
                        "error_code": 500,
                        "message": "RecordTooLargeException: The message is 2000096",
                    }
                ]
            },
        ),
        "L",
        (PARTIAL, "record too large by its words"),
    ),
    Canned("Strimzi: async", 3, answer(204, b""), "operator", (NO_KAFKA,)),
    Canned(
        "Strimzi: overloaded",
        1,
        strimzi(503, error(503, "Bridge is overloaded")),
        "outage",
        ("server error",),
    ),
    Canned(
        "Strimzi: validation",
        2,
        strimzi(
            400,
            error(400, "Validation error on: body.records")
            | {"validation_errors": ["records is too short"]},
        ),
        "refused",
        (REFUSED,),
    ),
    Canned(
        "Redpanda: one record",
        1,
        redpanda(200, {"offsets": [P_OK]}),
        "D",
        ("success",),
        "redpanda",
    ),
    Canned(
        "Redpanda: one entry a partition",
        500,
        redpanda(200, {"offsets": [P_OK, {"partition": 2, "offset": 7}]}),
        "D" * 500,
        ("one entry a partition",),
        "redpanda",
    ),
    Canned(
        "Redpanda, but not named: one entry a partition",
        500,
        redpanda(200, {"offsets": [P_OK, {"partition": 2, "offset": 7}]}),
        "ambiguous",
        ("one entry a partition, not named",),
    ),
    Canned(
        "Redpanda: one partition failed",
        500,
        redpanda(200, {"offsets": [P_OK, p_error(6, 1)]}),
        "ambiguous",
        ("miscounted success",),
        "redpanda",
    ),
    Canned(
        "Redpanda: no topic",
        1,
        redpanda(200, {"offsets": [p_error(3)]}),
        "operator",
        (PARTIAL, "topic missing"),
        "redpanda",
    ),
    Canned(
        "Kafka's number for one record, without a partition: invalid topic",
        2,
        karapace(422, offsets({"error_code": 17, "error": "invalid topic"}, K_OK)),
        "XD",
        ("partial failure", "topic invalid"),
    ),
    Canned(
        "Redpanda: invalid topic for one partition",
        2,
        redpanda(200, {"offsets": [p_error(17), {"partition": 1, "offset": 7}]}),
        "ambiguous",
        ("miscounted success",),
    ),
    Canned(
        "Redpanda: too large",
        1,
        redpanda(200, {"offsets": [p_error(10)]}),
        "L",
        (PARTIAL, "record too large"),
    ),
    Canned(
        "Redpanda: invalid record",
        1,
        redpanda(200, {"offsets": [p_error(87)]}),
        "X",
        (PARTIAL, "record rejected"),
    ),
    Canned(
        "Redpanda: not enough replicas",
        1,
        redpanda(200, {"offsets": [p_error(19)]}),
        "R",
        (PARTIAL, "passing trouble"),
    ),
    Canned(
        "Redpanda: no rights to the topic",
        1,
        redpanda(200, {"offsets": [p_error(29)]}),
        "U, operator",
        (PARTIAL, "rights at the broker"),
    ),
    Canned(
        "Redpanda: 1 is Kafka's",
        1,
        redpanda(200, {"offsets": [p_error(1)]}),
        "R",
        (PARTIAL, "unknown error"),
    ),
    Canned(
        "Redpanda: NONE",
        1,
        redpanda(200, {"offsets": [P_OK | {"error_code": 0}]}),
        "D",
        ("success",),
    ),
    Canned(
        "Redpanda: request refused",
        4,
        redpanda(422, error(422, "Invalid record")),
        "refused",
        (REFUSED,),
    ),
]

OTHER_SINKS = [
    Canned(
        "Lago: our id is known",
        1,
        answer(
            422,
            {
                "status": 422,
                "error": "Unprocessable Entity",
                "code": "validation_errors",
                "error_details": {"transaction_id": ["value_already_exist"]},
            },
            "Content-Type: application/json; charset=utf-8",
        ),
        "D",
        ("exists",),
    ),
    Canned(
        "one of many is known",
        5,
        answer(409, {"message": "event with this id already exists"}),
        "refused",
        ("one of them exists",),
    ),
    Canned(
        "a record is known",
        2,
        answer(200, offsets(K_OK, {"error_code": 409, "error": "Duplicate event id"})),
        "DD",
        (PARTIAL, "record exists"),
    ),
    Canned(
        "a topic is known",
        1,
        answer(409, {"message": "topic usage-events already exists"}),
        "operator",
        ("unexpected",),
    ),
    Canned(
        "key used for other content",
        1,
        answer(
            422,
            {
                "title": "Idempotency-Key is already used",
                "detail": "Idempotency Key MUST not be reused across different payloads",
            },
            "Content-Type: application/problem+json",
        ),
        "key conflict",
        ("key conflict",),
    ),
    Canned(
        "key in use",
        3,
        answer(
            409,
            {"title": "A request is outstanding for this Idempotency-Key"},
            "Retry-After: 2",
        ),
        "outage for 2 s",
        ("key in use",),
    ),
]

GATEWAYS = [
    Canned("nginx: 413", 500, nginx(413, "Request Entity Too Large"), "too large", ("too large",)),
    Canned(
        "nginx: 400",
        2,
        nginx(400, "Bad Request"),
        "operator",
        ("refused, but not by a proxy",),
    ),
    Canned("nginx: 404", 1, nginx(404, "Not Found"), "operator", ("configuration",)),
    Canned("nginx: 502", 1, nginx(502, "Bad Gateway"), "outage", ("server error",)),
    Canned("nginx: 504", 1, nginx(504, "Gateway Time-out"), "outage", ("server error",)),
    Canned(
        "nginx: busy",
        1,
        nginx(503, "Service Temporarily Unavailable", "Retry-After: 120"),
        "outage for 120 s",
        ("server error",),
    ),
    Canned(
        "Envoy: no upstream",
        1,
        answer(503, "no healthy upstream", f"content-type: {TEXT}", "server: envoy"),
        "outage",
        ("server error",),
    ),
    Canned(
        "Cloudflare: 520",
        1,
        answer(520, "error code: 520", f"Content-Type: {TEXT}", "Server: cloudflare"),
        "outage",
        ("server error",),
    ),
    Canned(
        "Cloudflare: challenge",
        1,
        answer(
            403,
            "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>",
            f"Content-Type: {HTML}",
            "cf-mitigated: challenge",
        ),
        "operator",
        ("credentials",),
    ),
    Canned(
        "AWS ALB: target timed out",
        1,
        answer(
            504,
            "<html>\r\n<head><title>504 Gateway Time-out</title></head>\r\n</html>\r\n",
            "Server: awselb/2.0",
        ),
        "outage",
        ("server error",),
    ),
    Canned(
        "AWS API gateway: missing token",
        1,
        answer(403, {"message": "Missing Authentication Token"}, f"Content-Type: {JSON}"),
        "operator",
        ("credentials",),
    ),
    Canned(
        "Kong: no route",
        1,
        answer(404, {"message": "no Route matched with those values"}, "Server: kong/3.4.0"),
        "operator",
        ("configuration",),
    ),
    Canned(
        "Kong: rate limit",
        1,
        answer(429, {"message": "API rate limit exceeded"}, "Retry-After: 31"),
        "outage for 31 s",
        ("come again",),
    ),
    Canned(
        "HAProxy: 408",
        1,
        answer(
            408,
            "<html><body><h1>408 Request Time-out</h1>\n</body></html>\n",
            "Connection: close",
        ),
        "outage",
        ("come again",),
    ),
    Canned(
        "Squid: wants a password",
        1,
        answer(407, "<html>ERR_CACHE_ACCESS_DENIED</html>", 'Proxy-Authenticate: Basic realm="x"'),
        "operator",
        ("proxy credentials",),
    ),
    Canned(
        "too early", 1, answer(425, "Too Early", f"Content-Type: {TEXT}"), "outage", ("come again",)
    ),
    Canned(
        "headers too large", 1, answer(431, "", "Connection: close"), "operator", ("unexpected",)
    ),
    Canned("legal reasons", 1, answer(451, "blocked"), "operator", ("unexpected",)),
    Canned("payment required", 1, answer(402, "pay"), "operator", ("unexpected",)),
    Canned("gone", 1, answer(410, "gone"), "operator", ("configuration",)),
    Canned("not implemented", 1, answer(501, "no"), "operator", ("configuration",)),
    Canned("no such version of HTTP", 1, answer(505, "no"), "operator", ("configuration",)),
    Canned("disk full", 1, answer(507, "Insufficient Storage"), "outage", ("server error",)),
    Canned("accepted, not stored", 2, answer(202, {"status": "queued"}), "operator", (NO_KAFKA,)),
    Canned("an empty 400", 1, answer(400, ""), "operator", ("refused, but not by a proxy",)),
    Canned(
        "gzip by a gateway",
        2,
        answer(
            200,
            gzip.compress(json.dumps(offsets(K_OK, K_OK)).encode(), mtime=0),
            "Content-Encoding: gzip",
        ),
        "DD",
        ("success",),
    ),
    Canned(
        "deflate by a gateway",
        1,
        answer(200, zlib.compress(json.dumps(offsets(K_OK)).encode()), "Content-Encoding: deflate"),
        "D",
        ("success",),
    ),
    Canned(
        "interim answer before the final one",
        1,
        b"HTTP/1.1 100 Continue\r\n\r\n" + karapace(200, offsets(K_OK)),
        "D",
        ("success",),
    ),
    Canned(
        "early hints instead of an answer",
        1,
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n",
        "operator",
        ("no final status",),
    ),
]

PORTALS = [
    Canned(
        "login page",
        3,
        answer(
            200,
            "<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body>"
            '<form method="post" action="/login"></form></body></html>',
            f"Content-Type: {HTML}",
        ),
        "operator",
        (NO_KAFKA,),
    ),
    Canned(
        "Apple's success page",
        1,
        answer(200, "<HTML><HEAD><TITLE>Success</TITLE></HEAD><BODY>Success</BODY></HTML>"),
        "operator",
        (NO_KAFKA,),
    ),
    Canned("generate_204", 1, answer(204, b""), "operator", (NO_KAFKA,)),
    Canned(
        "a friendly word", 1, answer(200, "OK", f"Content-Type: {TEXT}"), "operator", (NO_KAFKA,)
    ),
    Canned("an empty page", 2, answer(200, ""), "operator", (NO_KAFKA,)),
    Canned("friendly JSON", 1, answer(200, {"status": "ok"}), "operator", (NO_KAFKA,)),
    Canned(
        "redirect to a login",
        1,
        answer(302, "", "Location: http://login.portal.example/?url=http://stream/"),
        "operator",
        ("redirect",),
    ),
    Canned(
        "redirect that keeps the method",
        1,
        answer(307, "", "Location: https://elsewhere.example/topics/usage-events"),
        "operator",
        ("redirect",),
    ),
    Canned(
        "moved for ever",
        1,
        answer(308, "", "Location: https://stream.example/topics/usage-events"),
        "operator",
        ("redirect",),
    ),
    Canned(
        "login required",
        1,
        answer(511, "<html><a href='/login'>Log in</a></html>", f"Content-Type: {HTML}"),
        "operator",
        ("network login",),
    ),
]

WHOLE = json.dumps(offsets(K_OK, K_OK)).encode()

BROKEN = [
    Canned(
        "one entry too few",
        3,
        karapace(200, offsets(K_OK, K_OK)),
        "ambiguous",
        ("miscounted success",),
    ),
    Canned(
        "one entry too many",
        2,
        karapace(200, offsets(K_OK, K_OK, K_OK)),
        "ambiguous",
        ("miscounted success",),
    ),
    Canned("two entries for one", 1, karapace(200, offsets(K_OK, K_OK)), "operator", (NO_KAFKA,)),
    Canned("no entries", 2, karapace(200, offsets()), "operator", (NO_KAFKA,)),
    Canned(
        "an error with too few entries",
        3,
        karapace(422, offsets(K_STALE, K_OK)),
        "ambiguous",
        ("miscounted failure",),
    ),
    Canned(
        "an error without an error",
        2,
        karapace(422, offsets(K_OK, K_OK)),
        "operator",
        ("error without an error",),
    ),
    Canned(
        "a success with an error",
        2,
        answer(200, offsets(K_OK, K_OK) | error(50001, "x")),
        "operator",
        ("contradiction",),
    ),
    Canned("entries beside an error", 1, answer(500, offsets(K_OK)), "outage", ("server error",)),
    Canned("null for an entry", 2, answer(200, offsets(K_OK, None)), "operator", (NO_KAFKA,)),
    Canned(
        "a float for an offset",
        1,
        answer(200, b'{"offsets":[{"offset":1.0,"partition":0}]}'),
        "operator",
        (NO_KAFKA,),
    ),
    Canned(
        "true for an offset",
        1,
        answer(200, b'{"offsets":[{"offset":true,"partition":0}]}'),
        "operator",
        (NO_KAFKA,),
    ),
    Canned(
        "65 bits of offset",
        1,
        answer(200, b'{"offsets":[{"offset":18446744073709551616}]}'),
        "operator",
        (NO_KAFKA,),
    ),
    Canned(
        "text for a code",
        1,
        answer(200, b'{"offsets":[{"offset":1,"error_code":"NONE"}]}'),
        "operator",
        (NO_KAFKA,),
    ),
    Canned("half of the JSON", 2, answer(200, WHOLE[:-9]), "operator", (NO_KAFKA,)),
    Canned("NUL bytes", 1, answer(200, bytes(999)), "operator", (NO_KAFKA,)),
    Canned("deep JSON", 1, answer(200, b'{"offsets":' + b"[" * 200_000), "operator", (NO_KAFKA,)),
    Canned("UTF-16", 2, answer(200, WHOLE.decode().encode("utf-16")), "DD", ("success",)),
    Canned("garbage behind the answer", 2, answer(200, WHOLE) + b"\x00garbage", "DD", ("success",)),
    Canned("an odd status", 1, answer(799, "?"), "operator", ("no final status",)),
    Canned(
        "headers twice",
        2,
        answer(200, WHOLE, f"Content-Type: {KAFKA}", f"Content-Type: {HTML}"),
        "DD",
        ("success",),
    ),
    Canned(
        "Retry-After twice",
        1,
        answer(503, "", "Retry-After: 5", "Retry-After: 7"),
        "outage",
        ("server error",),
    ),
    Canned(
        "Retry-After below zero", 1, answer(503, "", "Retry-After: -5"), "outage", ("server error",)
    ),
    Canned("no headers at all", 2, b"HTTP/1.1 200 OK\r\n\r\n" + WHOLE, "DD", ("success",)),
    Canned("an old server", 2, b"HTTP/1.0 200 OK\r\n\r\n" + WHOLE, "DD", ("success",)),
    Canned(
        "bare line feeds",
        2,
        b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(WHOLE) + WHOLE,
        "DD",
        ("success",),
    ),
    # No whole answer.
    Canned("nothing", 1, b"", "outage"),
    Canned("half a status line", 1, b"HTTP/1.1 20", "outage"),
    Canned("half of the headers", 1, b"HTTP/1.1 200 OK\r\nContent-Le", "outage"),
    Canned("half of the body", 2, answer(200, WHOLE)[:-9], "outage"),
    Canned("a body without its last byte", 2, answer(200, WHOLE + b" ")[:-1], "outage"),
    Canned("half of the chunks", 2, chunked(200, WHOLE)[:-20], "outage"),
    Canned("chunks without their end", 2, chunked(200, WHOLE)[:-5], "outage"),
    Canned(
        "chunks of no size", 2, chunked(200, WHOLE).replace(b"\r\n\r\n", b"\r\n\r\n-", 1), "outage"
    ),
    Canned("garbage before the answer", 2, b"garbage\r\n" + answer(200, WHOLE), "outage"),
    Canned("two lengths", 2, answer(200, WHOLE, "Content-Length: 3"), "outage"),
    Canned(
        "half of a gzip",
        1,
        answer(200, gzip.compress(WHOLE, mtime=0)[:-9], "Content-Encoding: gzip"),
        "outage",
    ),
    Canned("no gzip", 2, answer(200, WHOLE, "Content-Encoding: gzip"), "outage"),
    Canned("brotli", 2, answer(200, WHOLE, "Content-Encoding: br"), "outage"),
    Canned(
        "a bomb",
        1,
        answer(200, gzip.compress(bytes(8_000_000), mtime=0), "Content-Encoding: gzip"),
        "outage",
    ),
    Canned("SSH", 1, b"SSH-2.0-OpenSSH_9.6\r\n", "outage"),
    Canned("SMTP", 1, b"220 mail.example ESMTP Postfix\r\n", "outage"),
    Canned("TLS", 1, b"\x15\x03\x01\x00\x02\x02\x50", "outage"),
    Canned("HTTP/2", 1, b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80", "outage"),
]

DELIVERIES = [*PROXIES, *OTHER_SINKS, *GATEWAYS, *PORTALS, *BROKEN]

ACCOUNTS = [
    Canned(
        "an account",
        1,
        answer(200, {"id": "cust-1", "name": "x"}),
        "customer 'cust-1'",
        ("account",),
    ),
    Canned("a number", 1, answer(200, {"id": 42}), "customer 42", ("account",)),
    Canned(
        "a list",
        1,
        answer(200, b'[{"id":"cust-1"},{"id":"cust-2"}]'),
        "customer 'cust-1'",
        ("account",),
    ),
    Canned("an empty list", 1, answer(200, b"[]"), "unknown", ("no account",)),
    Canned("not found", 1, answer(404, {"detail": "Not found"}), "unknown", ("account not found",)),
    Canned("no page", 1, nginx(404, "Not Found"), "operator", ("configuration",)),
    Canned("a login page", 1, PORTALS[0].answer, "operator", ("not an account",)),
    Canned("no id", 1, answer(200, {"name": "x"}), "operator", ("not an account",)),
    Canned("nothing", 1, answer(204, b""), "operator", ("not an account",)),
    Canned("redirect", 1, answer(302, "", "Location: /login"), "operator", ("redirect",)),
    Canned("credentials", 1, answer(401, {"id": "x"}), "operator", ("credentials",)),
    Canned("a password", 1, answer(407, ""), "operator", ("proxy credentials",)),
    Canned("a login", 1, answer(511, ""), "operator", ("network login",)),
    Canned("busy", 1, answer(429, "", "Retry-After: 9"), "outage for 9 s", ("come again",)),
    Canned("a bad request", 1, answer(400, {"message": "no"}), "operator", ("unexpected",)),
    Canned("down", 1, nginx(503, "Service Unavailable"), "outage", ("server error",)),
    Canned("an odd status", 1, answer(600, {"id": 1}), "operator", ("no final status",)),
    Canned("half", 1, answer(200, {"id": 1})[:-1], "outage"),
]
