"""The text of the systemd unit."""

from __future__ import annotations

import sys
from typing import NamedTuple

__all__ = ["ACCOUNT", "FOLDER_MODE", "STATE_FOLDER", "UNIT_PATH", "Unit"]

ACCOUNT = "meter-lib"
"""Name of the user, and of the group that shares the outbox with the worker."""
STATE_FOLDER = f"/var/lib/{ACCOUNT}"
FOLDER_MODE = 0o2770
UNIT_PATH = f"/etc/systemd/system/{ACCOUNT}.service"

_TEMPLATE = """\
# Made by: meter-lib service install. Settings are read from /etc/meter-lib/meter-lib.env.
# Applications share the outbox as members of the group {account}: usermod -aG {account} USER

[Unit]
Description=meter-lib worker, which delivers recorded usage
# For the stop: requests under way can still be answered. An outage needs no order.
After=network.target
# An unattended device is never given up.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=5
# A damaged outbox is set aside at the start, which takes as long as it takes.
TimeoutStartSec=infinity
TimeoutStopSec=15
WatchdogSec=5min

# Not DynamicUser: no application could reach the folder of its outbox.
User={account}
Group={account}
UMask=0007
StateDirectory={account}
StateDirectoryMode={mode:o}
# Where METER_OUTBOX is elsewhere, its folder must be writable too: ReadWritePaths=/folder

# Secrets that only root can read. They are taken anew by a restart, not by a reload.
{credentials}

ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


class Unit(NamedTuple):
    """What is to be said in it. Paths are absolute."""

    api_key_file: str | None = None
    """File of the API key, handed to the worker as a credential."""
    stream_token_file: str | None = None
    """The same for the token of the events API."""
    python: str = sys.executable
    """The interpreter in whose environment meter-lib is installed."""

    def text(self) -> str:
        """Return the unit file."""
        credentials = [
            *_credential("api-key", "METER_API_KEY_FILE", self.api_key_file),
            *_credential("stream-token", "METER_STREAM_TOKEN_FILE", self.stream_token_file),
        ]
        return _TEMPLATE.format(
            account=ACCOUNT,
            command=f"{_word(self.python)} -m meter_worker worker",
            mode=FOLDER_MODE,
            credentials="\n".join(credentials),
        )


def _credential(name: str, variable: str, file: str | None) -> list[str]:
    # A credential whose file is missing keeps the unit from starting: only those that were named.
    mark = "#" if file is None else ""
    source = file or f"/etc/meter-lib/{name}"
    return [
        f"{mark}LoadCredential={_word(f'{name}:{source}')}",
        f"{mark}Environment={variable}=%d/{name}",
    ]


def _word(text: str) -> str:
    """Return the text as one word of a unit file, in which nothing has a meaning."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != text or " " in text or "'" in text else text
