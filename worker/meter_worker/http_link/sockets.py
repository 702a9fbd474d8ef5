"""The sockets of a channel: shut down when the answer is late, or from another thread."""

from __future__ import annotations

import contextlib
import socket
import threading

__all__ = ["Sockets"]


class Sockets:
    """The sockets of a channel: which are open, which waits for an answer."""

    def __init__(self, read_timeout: float) -> None:
        self.read_timeout = read_timeout
        self.interrupted = False
        self.late = False
        self._open: set[socket.socket] = set()
        # Kept apart: of an answer that ends with its connection, the connection counts as
        # closed while the answer is still being read.
        self._waiting: socket.socket | None = None
        self._mutex = threading.Lock()
        self._timer: threading.Timer | None = None

    def opened(self, sock: socket.socket) -> None:
        """Watch a socket that has been connected."""
        with self._mutex:
            self._open.add(sock)
            if self.interrupted:
                _shut_down(sock)

    def closed(self, sock: socket.socket) -> None:
        """Forget a socket that is closed next."""
        with self._mutex:
            self._open.discard(sock)

    def sent(self, sock: socket.socket) -> None:
        """Start the time that the whole answer may take."""
        with self._mutex:
            self._waiting = sock
            if self.interrupted:
                _shut_down(sock)
        self._timer = threading.Timer(self.read_timeout, self._give_up, (sock,))
        self._timer.daemon = True
        self._timer.start()

    def answered(self) -> None:
        """End the wait, with an answer or without."""
        with self._mutex:
            self._waiting = None
            self.late = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check_not_shut_down(self) -> None:
        """Raise OSError where the socket was shut down under the reader."""
        if self.late or self.interrupted:
            raise ConnectionAbortedError("the connection was given up")

    def interrupt(self) -> None:
        """Shut down all there are, and every one that will be opened."""
        with self._mutex:
            self.interrupted = True
            for sock in self._open:
                _shut_down(sock)
            if self._waiting is not None:
                _shut_down(self._waiting)

    def _give_up(self, sock: socket.socket) -> None:
        with self._mutex:
            # By now it may be answered, and wait for another answer.
            if self._waiting is sock and threading.current_thread() is self._timer:
                self.late = True
                _shut_down(sock)


def _shut_down(sock: socket.socket) -> None:
    # It may be closed already, by whoever used it.
    with contextlib.suppress(OSError, ValueError):
        sock.shutdown(socket.SHUT_RDWR)
