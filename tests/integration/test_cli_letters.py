"""Dead letters leave an outbox as a file and come into another, each once and unchanged."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from meter_lib import MeterClient, Settings
from meter_lib.outbox import Burial, Selector, Settlement
from meter_worker.reasons import hint_for
from tests.integration.operating import TIME, Operator

if TYPE_CHECKING:
    from pathlib import Path


def exported(operator: Operator) -> list[dict[str, Any]]:
    """Return what an export of all dead letters holds."""
    lines: list[dict[str, Any]] = operator.run("dead-letters", "export", "-").lines
    return lines


def content(letters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return them without the numbers that the outbox gave them."""
    return [{name: said for name, said in one.items() if name != "seq"} for one in letters]


@pytest.fixture
def elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Operator:
    """Another device: its commands are told which outbox is meant."""
    del monkeypatch
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return Operator(str(folder / "outbox.db"), capsys)


def balance(operator: Operator) -> tuple[int, int, int, int, int]:
    """Return accepted, pending, dead, delivered, removed."""
    with operator.opened() as outbox:
        status = outbox.status()
    return status.accepted, status.pending, status.dead, status.delivered, status.removed


def test_an_export_holds_what_the_list_shows(operator: Operator, tmp_path: Path) -> None:
    """A private new file, or stdout; the letters stay where they are."""
    operator.bury("a", metadata={"x": "ü\n"})
    operator.bury("b", reason="too_large")
    ended = operator.run("dead-letters", "export", "out.jsonl", "--reason", "too_large", "--json")
    assert (ended.code, ended.json) == (0, {"exported": 1})
    listed = operator.run("dead-letters", "list", "--json").json
    file = tmp_path / "out.jsonl"
    assert [json.loads(line) for line in file.read_text().splitlines()] == listed[1:]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert exported(operator) == listed
    assert operator.run("dead-letters", "export", "out.jsonl").code == 2
    assert operator.run("dead-letters", "export", "-", "nobody").code == 1
    assert operator.keys() == ["a", "b"]


def test_letters_come_into_another_outbox_as_they_are(
    operator: Operator, elsewhere: Operator
) -> None:
    """Keys, content, reasons and counts are kept; they are accepted there, and due on replay."""
    operator.bury("a", "b", metadata={"x": "ü\n", "a": "1"})
    operator.bury("c", total_usage=None, start_time=TIME, end_time=TIME + 5)
    operator.run("dead-letters", "replay", "b")
    with operator.opened() as outbox:
        (event,) = outbox.due(now=TIME, limit=9, max_bytes=10**6)
        outbox.queue([event], customer_id='"cus_ü"')
        outbox.settle(Settlement(buried=[Burial(event, "rejected", "")]), now=TIME)
    operator.run("dead-letters", "export", "out.jsonl")
    arguments = ("dead-letters", "import", "out.jsonl", "--outbox", elsewhere.path)
    assert operator.run(*arguments) == (
        0,
        "3 dead letters recorded, 0 known ones, 0 bad lines\n",
        "",
    )
    there = operator.run("dead-letters", "list", "--json", "--outbox", elsewhere.path).json
    assert content(there) == content(exported(operator))
    with operator.opened() as here, elsewhere.opened() as other:
        assert [letter[5:] for letter in other.dead_letters(Selector())] == [
            letter[5:] for letter in here.dead_letters(Selector())
        ]
        assert other.replay([1, 2, 3], now=TIME) == 3
        due = other.due(now=TIME, limit=9, max_bytes=10**6)
        assert [event.idempotency_key for event in due] == ["a", "b", "c"]
    assert balance(elsewhere) == (3, 3, 0, 0, 0)


def test_an_import_again_takes_nothing_twice(operator: Operator) -> None:
    """Whether dead, pending or delivered meanwhile: what is known is skipped, and said."""
    operator.bury("a", "b", "c")
    operator.run("dead-letters", "export", "out.jsonl")
    operator.run("dead-letters", "replay", "b", "c")
    with operator.opened() as outbox:
        (_, c) = outbox.due(now=TIME, limit=9, max_bytes=10**6)
        outbox.settle(Settlement(delivered=[c]), now=TIME)
    before = balance(operator)
    ended = operator.run("dead-letters", "import", "out.jsonl", "--json")
    assert (ended.code, ended.json) == (
        0,
        {"bad_lines": [], "recorded": 0, "duplicates": 3, "bad": 0, "stopped_at_line": None},
    )
    assert balance(operator) == before == (3, 1, 1, 1, 0)


def test_what_a_replay_delivered_is_not_accepted_again(operator: Operator) -> None:
    """Also where the outbox chose the key: the file is older than the delivery."""
    with MeterClient(operator.path) as client:
        client.post("t", "d", "m", 1, timestamp=TIME, metadata={"b": "1", "a": "2"})
    with operator.opened() as outbox:
        (event,) = outbox.due(now=TIME, limit=9, max_bytes=10**6)
        outbox.settle(Settlement(buried=[Burial(event, "rejected", "")]), now=TIME)
    operator.run("dead-letters", "export", "out.jsonl")
    operator.run("dead-letters", "replay", "--all")
    with operator.opened() as outbox:
        (event,) = outbox.due(now=TIME, limit=9, max_bytes=10**6)
        outbox.settle(Settlement(delivered=[event]), now=TIME)
    ended = operator.run("dead-letters", "import", "out.jsonl", "--json")
    assert (ended.code, ended.json["recorded"], ended.json["duplicates"]) == (0, 0, 1)
    assert balance(operator) == (1, 0, 0, 1, 0)


def test_what_was_purged_is_accepted_again(operator: Operator) -> None:
    """A purge by mistake can be taken back, whoever made the keys; then it is known again."""
    operator.bury("a", "b")
    with MeterClient(operator.path) as client:
        client.post("t", "d", "m", 1, timestamp=TIME)
    with operator.opened() as outbox:
        (event,) = outbox.due(now=TIME, limit=9, max_bytes=10**6)
        outbox.settle(Settlement(buried=[Burial(event, "rejected", "")]), now=TIME)
    letters = exported(operator)
    purge = ("dead-letters", "purge", "--all", "--yes", "--export", "out.jsonl")
    assert operator.run(*purge).code == 0
    assert balance(operator) == (3, 0, 0, 0, 3)
    for recorded in (3, 0):
        ended = operator.run("dead-letters", "import", "out.jsonl", "--json")
        assert (ended.json["recorded"], ended.json["duplicates"]) == (recorded, 3 - recorded)
    assert balance(operator) == (6, 0, 3, 0, 3)
    assert content(exported(operator)) == content(letters)
    assert [letter["seq"] for letter in exported(operator)] == [4, 5, 6]


def test_a_post_under_the_key_of_a_purged_event_is_a_duplicate(operator: Operator) -> None:
    """An operator's decision stands against a program that posts the same again."""
    operator.bury("a")
    operator.run("dead-letters", "purge", "--all", "--yes", "--no-export")
    operator.post("a")
    assert balance(operator) == (1, 0, 0, 0, 1)


def test_what_the_limit_dropped_is_accepted_again(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full outbox that drops its oldest removes them; a file that has them brings them back."""
    monkeypatch.setenv("METER_MAX_BYTES", "4 MiB")
    monkeypatch.setenv("METER_WHEN_FULL", "drop-oldest")
    operator.bury("k")
    assert operator.run("dead-letters", "export", "out.jsonl").code == 0
    operator.run("dead-letters", "replay", "k")
    settings = Settings.load()
    with MeterClient(settings=settings) as client:
        for _ in range(600):
            client.post("t", "d", "m", 1, metadata={"text": "x" * 8000})
    assert "k" not in operator.keys("pending")
    ended = operator.run("dead-letters", "import", "out.jsonl", "--json")
    assert (ended.code, ended.json["recorded"]) == (0, 1)


LETTER = {
    "idempotency_key": "k",
    "tenant_id": "t",
    "device_id": "d",
    "meter_id": "m",
    "total_usage": 1,
    "event_time": TIME,
    "reason": "rejected",
}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "not JSON"),
        ("[]", "must be a JSON object"),
        (json.dumps({**LETTER, "more": 1}), "no field 'more'"),
        (json.dumps({**LETTER, "idempotency_key": None}), "idempotency_key must be given"),
        (json.dumps({**LETTER, "idempotency_key": "a b"}), "idempotency_key is 'a b'"),
        (json.dumps({**LETTER, "tenant_id": "\x1b"}), "tenant_id"),
        (json.dumps({**LETTER, "total_usage": -1}), "total_usage is -1"),
        (json.dumps({**LETTER, "total_usage": None}), "nothing was used"),
        (json.dumps({**LETTER, "event_time": "now"}), "event_time is 'now'"),
        (json.dumps({**LETTER, "event_time": True}), "event_time is True"),
        (json.dumps({**LETTER, "reason": 5}), "reason is 5"),
        (json.dumps({**LETTER, "detail": ["x"]}), "detail is"),
        (json.dumps({**LETTER, "attempts": -1}), "attempts is -1"),
        (json.dumps({**LETTER, "replays": 0.5}), "replays is 0.5"),
        (json.dumps({**LETTER, "dead_at": 10**15}), "dead_at is"),
        (json.dumps({**LETTER, "customer_id": {}}), "customer_id is"),
        (json.dumps({**LETTER, "metadata": {"a": []}}), "metadata['a']"),
        (json.dumps({**LETTER, "idempotency_key": "known", "total_usage": 7}), "other content"),
        (json.dumps({**LETTER, "idempotency_key": "gone", "total_usage": 7}), "other content"),
    ],
)
def test_a_bad_line_is_named_and_left_out(line: str, why: str, operator: Operator) -> None:
    """What is no dead letter, or another event under a known key, does not come in."""
    operator.bury("known", "gone", meter_id="m")
    operator.run("dead-letters", "purge", "gone", "--yes", "--no-export")
    good = json.dumps({**LETTER, "idempotency_key": "good"})
    with open("in.jsonl", "w", encoding="utf-8") as file:
        file.write(f"{good}\n\n{line}\n{good}\n")
    ended = operator.run("dead-letters", "import", "in.jsonl")
    assert ended.code == 1
    assert ended.stdout == "1 dead letter recorded, 1 known one, 1 bad line\n"
    assert ended.stderr.startswith("line 3: ")
    assert why in ended.stderr
    assert operator.keys() == ["known", "good"]


def test_an_event_of_a_clock_in_1970_comes_in_again(operator: Operator) -> None:
    """A device may have believed in 1970 when it recorded; its dead letters are no bad lines."""
    early = {**LETTER, "event_time": 77, "start_time": 77, "end_time": None, "metadata": {}}
    with open("in.jsonl", "w", encoding="utf-8") as file:
        file.write(json.dumps(early | {"total_usage": None}))
    assert operator.run("dead-letters", "import", "in.jsonl").code == 0
    (letter,) = exported(operator)
    assert (letter["event_time"], letter["start_time"]) == (77, 77)


def test_an_import_may_come_by_stdin(operator: Operator) -> None:
    """A file on another machine needs no copy here; a pipe shows no progress."""
    process = operator.process("dead-letters", "import", "-")
    stdout, stderr = process.communicate(json.dumps(LETTER), timeout=20)
    assert (process.returncode, stderr) == (0, "")
    assert stdout == "1 dead letter recorded, 0 known ones, 0 bad lines\n"


def test_a_full_outbox_says_how_far_the_import_came(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even the smallest outbox takes in what it can, to the line."""
    monkeypatch.setenv("METER_MAX_BYTES", "4 MiB")
    text = {"metadata": {"text": "x" * 8000}}
    with open("in.jsonl", "w", encoding="utf-8") as file:
        for number in range(600):
            line = {**LETTER, **text, "idempotency_key": f"k{number}"}
            file.write(json.dumps(line) + "\n")
    ended = operator.run("dead-letters", "import", "in.jsonl", "--json")
    recorded = ended.json["recorded"]
    assert (ended.code, ended.json["stopped_at_line"]) == (1, recorded + 1)
    assert 50 < recorded < 600
    assert "is full" in ended.stderr
    assert balance(operator) == (recorded, 0, recorded, 0, 0)


def test_many_letters_come_in_within_the_limit_of_a_small_outbox(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that would be too large for the log is made in parts."""
    monkeypatch.setenv("METER_MAX_BYTES", "4 MiB")
    with open("in.jsonl", "w", encoding="utf-8") as file:
        for number in range(1_200):
            line = {**LETTER, "idempotency_key": f"k{number}", "tenant_id": f"t{number}"}
            file.write(json.dumps(line) + "\n")
    ended = operator.run("dead-letters", "import", "in.jsonl", "--json")
    assert (ended.code, ended.json["recorded"]) == (0, 1_200)
    with operator.opened() as outbox:
        assert outbox.status().bytes <= 4 * 2**20 + 256 * 1024


def test_show_says_what_can_be_done(operator: Operator) -> None:
    """Whoever looks at one dead letter reads what its reason means, and what helps."""
    operator.bury("k", reason="customer_not_found")
    shown = operator.run("dead-letters", "show", "k").stdout
    assert f"what to do       {hint_for('customer_not_found')}\n" in shown
