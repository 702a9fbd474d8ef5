from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meter_worker.sandbox import Sandbox
from tests.promises.delivering import Device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device and its backend; no worker of it is left when the test ends."""
    with Sandbox() as sandbox:
        made = Device(tmp_path, sandbox)
        yield made
        made.end()
