"""Builds one crash image once more: `python -m meter_worker.torture TRACE POINT SEED FOLDER`."""

from __future__ import annotations

import os
import sys

from meter_worker.torture.examining import examine
from meter_worker.torture.images import PLACE, image_at, lay_down
from meter_worker.torture.recording import recorded


def _main(trace: str, point: str, seed: str, folder: str) -> None:
    image = image_at(recorded(trace).operations, point=int(point), seed=seed)
    for name in ("image", "examined"):
        os.makedirs(os.path.join(folder, name))
        lay_down(image, os.path.join(folder, name))
    found = examine(os.path.join(folder, "examined", PLACE), image.promised)
    sys.stdout.write(f"{len(image.promised.acknowledged)} acknowledged; {found}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
