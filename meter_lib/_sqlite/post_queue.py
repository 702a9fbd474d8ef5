"""Lets threads that post at the same time share one commit, and so one sync of the disk.

Who comes while nobody commits commits at once, alone. Who comes meanwhile waits; then one
of those who wait commits for all of them. So a lone poster never waits for another thread,
and under load the batches grow by themselves.

Only one thread at a time runs Python. All of them woken at once would wake to wait again, for
the interpreter; so each wakes the next one.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from meter_lib.clock import Uptime
from meter_lib.errors import OutboxUnavailable
from meter_lib.usage import UsageEvent

if TYPE_CHECKING:
    from meter_lib.recording import Receipt

__all__ = ["Moment", "Post", "PostQueue"]

# Enough to share a sync among all the threads that a program has; few enough for the log of
# the smallest outbox.
_MOST_POSTS_A_COMMIT = 128
# How long the one who leads waits for one more to come: some need a fiftieth of that.
_COMING_SECONDS = 0.0001


class Moment(NamedTuple):
    """When a post was made, by both clocks."""

    now: int
    uptime: Uptime | None


class Post:
    """Events of one call, and what became of them: `receipts` or `error`."""

    __slots__ = ("at", "error", "events", "receipts", "thread", "waits", "woken")

    def __init__(self, events: Sequence[UsageEvent], at: Moment, thread: int) -> None:
        self.events = events
        self.at = at
        self.thread = thread
        self.receipts: list[Receipt] | None = None
        self.error: Exception | None = None
        # Held until somebody else has seen to this post, or left it to lead.
        self.woken = threading.Lock()
        self.woken.acquire()
        # Whether its thread waits for that, and will wake the next.
        self.waits = True

    def is_done(self) -> bool:
        """Return whether it is known what became of it."""
        return self.receipts is not None or self.error is not None


class PostQueue:
    """The threads of this process that want to commit.

    `record` gets posts and sets `receipts` or `error` of each; one thread at a time calls
    it. It is for threads that run no signal handlers: these could interrupt the one who
    leads, and wait for it.
    """

    def __init__(self, record: Callable[[Sequence[Post]], None]) -> None:
        self._record = record
        # At most one entry: the post whose thread commits now. A dict, since looking and
        # taking are one step there, which no lock of our own must guard.
        self._leader: dict[str, Post] = {}
        self._waiting: deque[Post] = deque()
        # Those of the last commits whose threads are yet to be woken.
        self._done: deque[Post] = deque()
        # How many posts there were at the last commit, those that came meanwhile included.
        self._crowd = 0
        # What the one who leads waits for, at most one, until so many others wait.
        self._bells: list[threading.Lock] = []
        self._expected = 0

    def add(self, post: Post) -> None:
        """Return once `receipts` or `error` of the post is set."""
        try:
            leader = self._leader.setdefault("post", post)
            if leader is not post:
                self._wait_behind(leader, post)
            if self._leader.get("post") is post:
                self._lead(post)
        except BaseException:
            # It may have been interrupted just before it would have woken the next one.
            post.waits = False
            self._wake_the_next()
            raise
        finally:
            self._pass_on_the_lead(post)

    def _wait_behind(self, leader: Post, post: Post) -> None:
        """Return once the post is done, or its thread is to lead."""
        if leader.thread == post.thread:
            # A finalizer has interrupted it. It cannot go on before this one returns.
            raise OutboxUnavailable(
                "this thread is recording another event just now; nothing was recorded"
            )
        self._waiting.append(post)
        self._say_if_all_have_come()
        # Whoever led may have looked for us just before, and gone.
        if self._leader.setdefault("post", post) is not post:
            post.woken.acquire()
        else:
            post.waits = False
        if post.is_done():
            self._wake_the_next()

    def _lead(self, post: Post) -> None:
        self._let_others_come()
        posts = [] if post.is_done() else [post]
        while self._waiting and len(posts) < _MOST_POSTS_A_COMMIT:
            waiting = self._waiting.popleft()
            if waiting is not post:
                posts.append(waiting)
        try:
            if posts:
                self._record(posts)
        finally:
            for other in posts:
                if not other.is_done():
                    other.error = OutboxUnavailable("the post was interrupted")
                if other is not post:
                    self._done.append(other)
            self._crowd = len(posts) + len(self._waiting)
            self._wake_the_next()

    def _wake_the_next(self) -> None:
        """Wake one thread whose post is done; it calls this in its turn."""
        while self._done:
            try:
                post = self._done.popleft()
            except IndexError:
                return  # another thread has taken it
            post.woken.release()
            if post.waits:
                return

    def _let_others_come(self) -> None:
        """Wait for those who were there at the last commit, while they do come.

        They have just been woken. Without that, the first of them would commit alone, and all
        the others wait for two syncs.
        """
        self._expected = self._crowd - 1
        if len(self._waiting) >= self._expected:
            return
        bell = threading.Lock()
        bell.acquire()
        self._bells.append(bell)
        came = -1
        while came < len(self._waiting) < self._expected:
            came = len(self._waiting)
            bell.acquire(timeout=_COMING_SECONDS)
        self._bells.clear()

    def _say_if_all_have_come(self) -> None:
        if self._bells and len(self._waiting) >= self._expected:
            try:
                bell = self._bells.pop()
            except IndexError:
                return  # as above
            bell.release()

    def _pass_on_the_lead(self, post: Post) -> None:
        while self._leader.get("post") is post:
            if self._waiting:
                heir = self._waiting.popleft()
                self._leader["post"] = heir
                heir.woken.release()
                return
            del self._leader["post"]
            if self._waiting:
                # Somebody came between the look and the end of the lead: see to it again.
                self._leader.setdefault("post", post)
