"""One measurement in a process of its own: prints what it found as JSON.

    python bench/probe.py NAME '{"argument": value}'

Started by its path, it takes the product from the environment or from PYTHONPATH, whichever
tree that names. Scratch files go to $TMPDIR, which must be on the disk that is meant, never on
tmpfs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from measuring import Figures

__all__ = ["probe"]


def probe(
    name: str,
    arguments: Mapping[str, object],
    *,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
    script: str = __file__,
) -> Figures:
    """Return what the probe of that name finds, in a process of its own."""
    ran = subprocess.run(
        [python, script, name, json.dumps(arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    figures: Figures = json.loads(ran.stdout)
    return figures


def main() -> None:
    """Run the probe that the command line names."""
    import backlog  # noqa: PLC0415  # whoever only calls `probe` needs none of the product
    import delivering  # noqa: PLC0415
    import recording  # noqa: PLC0415
    import weight  # noqa: PLC0415

    probes = {**recording.PROBES, **delivering.PROBES, **backlog.PROBES, **weight.PROBES}
    with tempfile.TemporaryDirectory(prefix="meter-lib-bench-") as folder:
        print(json.dumps(probes[sys.argv[1]](folder, **json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
