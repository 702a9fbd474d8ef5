"""The command `meter-lib` and its commands."""

from __future__ import annotations

import click

from meter_lib import __version__
from meter_worker.cli.audit import audit
from meter_worker.cli.completion import completion
from meter_worker.cli.config import show_config
from meter_worker.cli.dead_letters import dead_letters
from meter_worker.cli.delivery import flush, worker
from meter_worker.cli.doctor import doctor
from meter_worker.cli.groups import Program
from meter_worker.cli.local import demo, sandbox
from meter_worker.cli.meters import meters
from meter_worker.cli.migrate import migrate
from meter_worker.cli.move import move
from meter_worker.cli.pending import pending
from meter_worker.cli.post import post
from meter_worker.cli.service import service
from meter_worker.cli.status import status
from meter_worker.cli.torture import torture


@click.group(
    cls=Program,
    epilog="""\b
Exit codes of every command:
  0  done
  1  refused, failed, or not all done
  2  wrong option, argument, selector or setting; the message names it

Settings come from options, else from METER_* variables of the environment, else from the file that
METER_CONFIG names, else they have their defaults. Results go to stdout, everything else to stderr.
""",
)
@click.version_option(__version__, prog_name="meter-lib", message="%(prog)s %(version)s")
def main() -> None:
    """Record usage in an outbox on this device, and deliver it to the billing backend.

    To see how it goes: meter-lib status. What the backend refused for good: meter-lib
    dead-letters list. Nothing recorded is ever lost by stopping or killing a command.
    """


for _command in (
    post,
    worker,
    flush,
    status,
    pending,
    dead_letters,
    audit,
    doctor,
    show_config,
    meters,
    migrate,
    move,
    service,
    sandbox,
    demo,
    torture,
    completion,
):
    main.add_command(_command)
