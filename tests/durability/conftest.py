from __future__ import annotations

import pytest

from meter_worker.torture.recording import why_no_recording


@pytest.fixture(scope="session")
def _strace() -> None:
    """Skip where nothing can be recorded."""
    reason = why_no_recording()
    if reason is not None:
        pytest.skip(f"no crash images: {reason}")
