"""How a step of the demo ends that did not get where it had to."""

__all__ = ["DemoFailed"]


class DemoFailed(Exception):
    """The demo cannot go on; the message says what it was waiting for, or what went wrong."""
