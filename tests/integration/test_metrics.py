"""What a worker shows to Prometheus and to whoever asks whether it is well."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meter_lib import Settings
from meter_lib.clock import SystemClock
from meter_lib.opening import open_outbox
from meter_lib.outbox import Burial, Selector, Settlement
from meter_worker.backend import (
    Ambiguous,
    Answered,
    Delivered,
    Interrupted,
    Refused,
    Retriable,
    Unavailable,
)
from meter_worker.metrics import VERDICTS, Metrics
from tests.integration.workers import Child, eventually, post, status

if TYPE_CHECKING:
    from collections.abc import Callable

    from meter_worker.backend import Outcome
    from meter_worker.sandbox import Sandbox


pytestmark = pytest.mark.usefixtures("path", "sandbox")

ROOT = Path(__file__).parents[2]


def url_of(worker: Child) -> str:
    """Wait until it listens, and return where."""
    worker.says("metrics at ")
    return re.findall(r"metrics at (\S+)/metrics", worker.stderr)[0]


def ask(url: str) -> tuple[int, str, str]:
    """Return status, content type and body."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # our own
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read().decode()


def figures(text: str) -> dict[str, float]:
    """Return what Prometheus makes of it, by name and verdict."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_is_told_what_is_in_the_outbox(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """Each figure has the name that was promised, and no label names a tenant or a device."""
    post(path, 3)
    worker = start("--metrics-port", "0")
    url = url_of(worker)
    eventually(lambda: status(path).delivered == 3)
    sandbox.fault("down")
    post(path, 2)
    worker.says("no delivery for")
    code, content_type, text = ask(f"{url}/metrics")
    assert (code, content_type.partition(";")[0]) == (200, "text/plain")
    told = figures(text)
    assert told.pop("meter_oldest_pending_seconds") >= 0
    assert told.pop("meter_outbox_bytes") > 4096
    assert told.pop("meter_attempts_total delivered") >= 1
    assert told.pop("meter_attempts_total unavailable") >= 1
    assert told.pop("meter_request_seconds_count") >= 2
    assert {name: value for name, value in told.items() if "request_seconds" not in name} == {
        "meter_pending_events": 2,
        "meter_dead_letters": 0,
        "meter_link_up": 0,
        "meter_accepted_events_total": 5,
        "meter_delivered_events_total": 3,
        "meter_dead_lettered_events_total": 0,
        "meter_removed_events_total": 0,
        "meter_attempts_total errors": 0,
        "meter_attempts_total refused": 0,
        "meter_attempts_total ambiguous": 0,
        "meter_attempts_total interrupted": 0,
    }
    assert "tenant" not in text
    assert "device" not in text


def test_the_figures_survive_new_settings(
    start: Callable[..., Child], path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port stays open over SIGHUP, and tells of the outbox that is used then."""
    file = tmp_path / "meter-lib.env"
    file.write_text("")
    monkeypatch.setenv("METER_CONFIG", str(file))
    monkeypatch.delenv("METER_OUTBOX")
    other = tmp_path / "other.db"
    post(other, 4)
    file.write_text(f"METER_OUTBOX={path}\n")
    worker = start("--metrics-port", "0")
    url = url_of(worker)
    worker.says(f"delivering from {path}")
    file.write_text(f"METER_OUTBOX={other}\n")
    worker.process.send_signal(signal.SIGHUP)
    worker.says(f"delivering from {other}")
    eventually(lambda: status(other).delivered == 4)
    assert figures(ask(f"{url}/metrics")[2])["meter_delivered_events_total"] == 4


def test_a_worker_is_well_while_its_loop_turns(
    start: Callable[..., Child], path: Path, sandbox: Sandbox
) -> None:
    """A link that is down is told, and is no reason to restart anything."""
    sandbox.fault("down")
    post(path)
    worker = start("--metrics-port", "0")
    url = url_of(worker)
    worker.says("no delivery for")
    code, content_type, text = ask(f"{url}/healthz")
    shown: dict[str, Any] = json.loads(text)
    assert (code, content_type) == (200, "application/json")
    assert (shown["ok"], shown["pending"], shown["link_up"]) == (True, 1, False)
    assert shown["seconds_since_progress"] < 60
    assert any(link["last_error"] for link in shown["links"].values())


def test_a_worker_is_not_well_when_its_loop_hangs(start: Callable[..., Child], path: Path) -> None:
    """503, so that whoever supervises it starts another; the figures can be read all the same."""
    hanging = (
        "import threading\n"
        "from meter_worker import health\n"
        "from meter_worker.cli import main\n"
        "from meter_worker.flusher import Flusher\n"
        "health._STUCK_SECONDS = 0.5\n"
        "Flusher.start = lambda self: threading.Event().wait()\n"
        "main()\n"
    )
    post(path)
    worker = start("--metrics-port", "0", python=("-c", hanging))
    url = url_of(worker)
    worker.says("delivering from")
    eventually(lambda: ask(f"{url}/healthz")[0] == 503)
    assert json.loads(ask(f"{url}/healthz")[2])["ok"] is False
    assert figures(ask(f"{url}/metrics")[2])["meter_pending_events"] == 1


def test_figures_that_cannot_be_read_are_not_made_up(
    start: Callable[..., Child], path: Path
) -> None:
    """Where the outbox is gone the scrape fails, and says why; nothing else is served at all."""
    worker = start("--metrics-port", "0")
    url = url_of(worker)
    worker.says("delivering from")
    assert ask(f"{url}/metrics")[0] == 200
    path.rename(path.with_suffix(".moved"))
    code, _, text = ask(f"{url}/metrics")
    assert (code, str(path) in text) == (503, True)
    assert "outbox_error" in json.loads(ask(f"{url}/healthz")[2])
    assert ask(f"{url}/")[0] == 404


def test_only_this_machine_is_served_unless_told(start: Callable[..., Child]) -> None:
    """By default the port is one of the loopback address."""
    worker = start("--metrics-port", "0")
    assert url_of(worker).startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_ends_the_worker_with_1(start: Callable[..., Child]) -> None:
    """It names the port, and delivers nothing unseen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        worker = start("--metrics-port", str(port))
        assert worker.ends() == 1
    assert f"cannot listen on port {port} of 127.0.0.1" in worker.stderr


def test_without_the_extra_the_option_is_refused_by_name(start: Callable[..., Child]) -> None:
    """It ends with 2 and says what to install; without the option nobody needs the extra."""
    without = (
        "import sys\n"
        "sys.modules['prometheus_client'] = None\n"
        "from meter_worker.cli import main\n"
        "main()\n"
    )
    worker = start("--metrics-port", "0", python=("-c", without))
    assert worker.ends() == 2
    assert "pip install 'meter-lib[metrics]'" in worker.stderr
    assert "--metrics-port" in worker.stderr
    plain = start(python=("-c", without))
    plain.says("delivering from")
    assert plain.ends(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Answered((Delivered(), Delivered())), "delivered"),
        (Answered((Delivered(), Retriable("later"))), "errors"),
        (Refused("rejected", "no"), "refused"),
        (Ambiguous("some"), "ambiguous"),
        (Unavailable("down"), "unavailable"),
        (Interrupted(), "interrupted"),
    ],
)
def test_each_request_is_counted_once(outcome: Outcome, verdict: str, path: Path) -> None:
    """By what became of it; the others stay as they were, and are there from the start."""
    metrics = Metrics()
    metrics.observe(outcome, 0.2)
    post(path)
    told = figures(metrics.text(status(path), SystemClock().now()).decode())
    assert {name: told[f"meter_attempts_total {name}"] for name in VERDICTS} == {
        name: float(name == verdict) for name in VERDICTS
    }
    assert (told["meter_request_seconds_count"], told["meter_request_seconds_sum"]) == (1, 0.2)


@pytest.mark.parametrize(
    "file", ["docs/worker.md", "deploy/prometheus-alerts.yml", "deploy/grafana-dashboard.json"]
)
def test_what_is_written_of_the_figures_names_those_there_are(file: str, path: Path) -> None:
    """No alert waits for a figure that nobody tells; the page and the dashboard name each one."""
    post(path)
    told = Metrics().text(status(path), SystemClock().now()).decode()
    there = set(re.findall(r"^# TYPE (\w+) ", told, re.MULTILINE))
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".json"):
        text = " ".join(
            target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]
        )
    named = {name.removesuffix("_bucket") for name in re.findall(r"\bmeter_\w+", text)}
    if file.endswith(".yml"):
        assert (named - there, bool(named)) == (set(), True)
    else:
        assert named == there


def test_a_total_never_falls(path: Path) -> None:
    """Dead letters that are purged are no longer there, and were given up all the same."""
    metrics = Metrics()
    now = SystemClock().now()
    post(path, 3)
    outbox = open_outbox(Settings(outbox=str(path)))
    outbox.try_hold()

    def total() -> tuple[float, float]:
        told = figures(metrics.text(outbox.status(), now).decode())
        return told["meter_dead_letters"], told["meter_dead_lettered_events_total"]

    events = outbox.due(now=now, limit=3, max_bytes=10_000)
    outbox.settle(
        Settlement(buried=[Burial(event, "rejected", "no") for event in events[:2]]), now=now
    )
    assert total() == (2, 2)
    outbox.purge([letter.seq for letter in outbox.dead_letters(Selector())])
    assert total() == (0, 2)
    outbox.settle(Settlement(buried=[Burial(events[2], "rejected", "no")]), now=now)
    assert total() == (1, 3)
    outbox.close()
