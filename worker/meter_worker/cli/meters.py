"""`meter-lib meters`: the catalogue."""

from __future__ import annotations

import click

from meter_lib import METERS
from meter_worker.cli.options import json_option
from meter_worker.cli.output import print_json, print_table


@click.command()
@json_option
def meters(*, as_json: bool) -> None:
    """List the meters that the backend is known to bill.

    Usage of any other meter is recorded and delivered as well: the backend has the last word.
    """
    if as_json:
        print_json([meter._asdict() for meter in METERS])
    else:
        print_table(["ID", "NAME", "TYPE", "DESCRIPTION"], METERS)
