"""The story that the demo plays and tells, step by step."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

from meter_worker.demo import telling
from meter_worker.demo.comparison import compare, ledger_problems, posted_events, received_event
from meter_worker.demo.events import built_in_lines, read_lines
from meter_worker.demo.failure import DemoFailed
from meter_worker.demo.processes import Processes
from meter_worker.demo.sandbox_view import SandboxView, reserved_port

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator, Sequence

    from meter_worker.demo.comparison import Event
    from meter_worker.demo.processes import Child

__all__ = ["run_demo"]

# As from a proxy with a Kafka cluster behind it; it also makes "half way" last.
_ANSWER_SECONDS = 0.1
# So many that one of them is a small part of the whole, so few that they take seconds.
_REQUESTS = 40
_MOST_IN_A_REQUEST = 500
# For a disk that takes its time to sync.
_POST_SECONDS = 60.0
_POST_SECONDS_AN_EVENT = 0.02


def run_demo(from_file: str | None) -> bool:
    """Play the demo with the events of a file, or with some of its own, and tell it on stdout.

    Returns whether every event arrived and would be billed once. Everything happens on
    127.0.0.1 and in a temporary folder; its processes and the folder are gone when this
    returns or raises, KeyboardInterrupt (which SIGTERM and SIGHUP become) included.
    """
    with _interrupted_by(signal.SIGTERM, signal.SIGHUP), contextlib.ExitStack() as stage:
        try:
            folder = stage.enter_context(tempfile.TemporaryDirectory(prefix="meter-lib-demo-"))
            path = os.path.abspath(from_file) if from_file else _built_in_file(folder)
            posted = posted_events(read_lines(path))
            port = stage.enter_context(reserved_port())
        except (DemoFailed, OSError) as failure:
            telling.failed(str(failure))
            return False
        sandbox = SandboxView(port.getsockname()[1])
        processes = stage.enter_context(Processes(folder, _settings(folder, sandbox, len(posted))))
        try:
            return _Demo(path, posted, port, sandbox, processes).play()
        except DemoFailed as failure:
            telling.failed(str(failure), processes.log_ends())
            return False


def _built_in_file(folder: str) -> str:
    path = os.path.join(folder, "usage.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in built_in_lines())
    return path


def _settings(folder: str, sandbox: SandboxView, events: int) -> dict[str, str]:
    return {
        "METER_OUTBOX": os.path.join(folder, "outbox.db"),
        "METER_STREAM_URL": sandbox.url,
        "METER_ACCOUNTS_URL": sandbox.url,
        "METER_BATCH_SIZE": str(min(_MOST_IN_A_REQUEST, 1 + events // _REQUESTS)),
        # Nobody wants to watch a worker being patient.
        "METER_BACKOFF_BASE": "0.2",
        "METER_BACKOFF_MAX": "1",
    }


class _Demo:
    """One performance. Each step says what it saw, and raises `DemoFailed` where it is stuck."""

    def __init__(
        self,
        path: str,
        posted: Sequence[Event],
        port: socket.socket,
        sandbox: SandboxView,
        processes: Processes,
    ) -> None:
        self._path = path
        self._posted = posted
        self._port = port
        self._sandbox = sandbox
        self._processes = processes

    def play(self) -> bool:
        """Play all steps and return whether every event arrived and would be billed once."""
        begun_at = time.monotonic()
        telling.title(
            "meter-lib records usage without a network, and delivers it once there is one.",
            f"Watch it do so with {len(self._posted):,} events, in processes of their own,"
            " on 127.0.0.1 only.",
        )
        self._record_while_offline()
        worker = self._start_worker_while_offline()
        self._bring_up_the_backend(worker)
        self._kill_in_the_midst(worker)
        self._deliver_the_rest()
        problems = self._compare()
        telling.verdict(len(self._posted), problems, time.monotonic() - begun_at)
        return not problems

    def _record_while_offline(self) -> None:
        telling.step(1, "The backend is down. Usage is recorded all the same.")
        begun_at = time.monotonic()
        report = self._processes.json(
            *("post", "--from-file", self._path),
            seconds=_POST_SECONDS + _POST_SECONDS_AN_EVENT * len(self._posted),
        )
        seconds = time.monotonic() - begun_at
        if report["recorded"] != len(self._posted):
            raise DemoFailed(f"{report['recorded']} of {len(self._posted)} events were recorded")
        telling.say(f"{len(self._posted):,} events are safe on the disk after {seconds:.1f} s.")

    def _start_worker_while_offline(self) -> Child:
        telling.step(2, "A worker is started to deliver them. The backend is still down.")
        worker = self._processes.start("worker")
        last_error = self._processes.wait(
            "the worker to try",
            lambda: self._status()["last_error"],
            lambda error: error is not None,
            beside=worker,
        )
        pending = self._status()["pending"]
        if pending != len(self._posted):
            raise DemoFailed(f"{pending} of {len(self._posted)} events are pending")
        telling.say(f"{pending:,} events are pending, none is lost. The worker says:")
        telling.say(str(last_error))
        return worker

    def _bring_up_the_backend(self, worker: Child) -> None:
        telling.step(3, "The backend comes up.")
        begun_at = time.monotonic()
        self._port.close()
        sandbox = self._processes.start("sandbox", "--port", str(self._sandbox.port))
        self._processes.wait("the backend to listen", self._sandbox.is_up, bool, beside=sandbox)
        self._sandbox.slow_down(_ANSWER_SECONDS)
        half = len(self._posted) // 2
        with telling.progress(len(self._posted)) as show:
            counts = self._processes.wait(
                "half of the events to arrive",
                self._sandbox.counts,
                lambda counts: counts.keys >= half,
                beside=worker,
                seen=lambda counts: show(counts.keys),
            )
        seconds = time.monotonic() - begun_at
        telling.say(f"{counts.keys:,} events have arrived after {seconds:.1f} s.")

    def _kill_in_the_midst(self, worker: Child) -> None:
        telling.step(4, "The network loses a reply, and the worker is killed (SIGKILL).")
        self._sandbox.slow_down(_ANSWER_SECONDS, losing_a_reply=True)
        self._processes.wait(
            "a reply to be lost",
            lambda: (self._sandbox.has_lost_reply(), self._sandbox.counts().keys),
            # A file of very few events may be delivered by now.
            lambda seen: seen[0] or seen[1] == len(self._posted),
            beside=worker,
        )
        worker.kill()
        # In this order: what was under way at the kill is stored by then.
        confirmed = self._status()["delivered"]
        arrived = self._sandbox.counts().keys
        telling.say(
            f"{arrived:,} events have arrived, but the outbox knows so of {confirmed:,} only."
        )
        telling.say(f"The {arrived - confirmed:,} in doubt stay pending, like those never sent.")

    def _deliver_the_rest(self) -> None:
        telling.step(
            5, "A new worker is started. It sends those in doubt again, and then the rest."
        )
        begun_at = time.monotonic()
        worker = self._processes.start("worker")
        with telling.progress(len(self._posted)) as show:
            self._processes.wait(
                "nothing to be pending",
                lambda: (self._pending_beside_worker(), self._sandbox.counts()),
                lambda seen: seen[0] == 0,
                beside=worker,
                seen=lambda seen: show(seen[1].keys),
            )
        telling.say(f"Nothing is pending after {time.monotonic() - begun_at:.1f} s.")
        telling.say(f"Told to stop (SIGTERM), the worker ends in {worker.stop():.1f} s.")

    def _compare(self) -> Sequence[str]:
        telling.step(6, "What was posted, event by event, against what the backend received:")
        result = compare(self._posted, [received_event(one) for one in self._sandbox.values()])
        telling.comparison(result)
        ledger = self._status()
        telling.ledger(ledger)
        return [*result.problems, *ledger_problems(ledger, posted=len(self._posted))]

    def _pending_beside_worker(self) -> int | None:
        """Return how many events are pending, None as long as no worker holds the outbox."""
        status = self._status()
        pending: int = status["pending"]
        return pending if status["worker"]["running"] else None

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._processes.json("status")
        return status


@contextlib.contextmanager
def _interrupted_by(*signals: signal.Signals) -> Generator[None]:
    """Let these signals end the block as Ctrl-C does, so that it cleans up behind itself."""
    handlers = {one: signal.getsignal(one) for one in signals}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # nobody else can set them
    try:
        for one, handler in handlers.items():
            if handler is not signal.SIG_IGN:  # as nohup has it
                signal.signal(one, signal.default_int_handler)
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
