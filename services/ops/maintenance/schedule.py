"""The units that let systemd run maintenance, and the worker, on a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

COMMAND: Final = Path("/srv/pgcorpus/.venv/bin/pgcorpus")
"""The command in the units of ``deploy/systemd``."""

SERVICE: Final = """\
[Unit]
Description=pgcorpus maintenance (%i)
Documentation=file:///srv/pgcorpus/docs/how-to/maintain.md
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User=pgcorpus
# The login is the owner of the tables. The file belongs to root, mode 0600.
EnvironmentFile=/etc/pgcorpus/owner.env
ExecStart={command} maintenance %i
# As Ctrl-C: the statement in hand is cancelled, and the log says so.
KillSignal=SIGINT
SuccessExitStatus=130
TimeoutStopSec=60
Nice=10
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
"""

TIMER: Final = """\
[Unit]
Description=pgcorpus maintenance, {when}

[Timer]
OnCalendar={calendar}
RandomizedDelaySec=15min
Persistent=yes
Unit=pgcorpus-maintenance@{when}.service

[Install]
WantedBy=timers.target
"""

CALENDARS: Final[Mapping[str, str]] = {
    "weekly": "Sun *-*-* 03:00:00",
    "monthly": "*-*-01 04:00:00",
}


def make_units(command: Path = COMMAND) -> dict[str, str]:
    """Return the units of maintenance: name of the file → its text.

    Args:
        command: The path of ``pgcorpus`` on the server.
    """
    timers = {
        f"pgcorpus-maintenance-{when}.timer": TIMER.format(when=when, calendar=calendar)
        for when, calendar in CALENDARS.items()
    }
    return {"pgcorpus-maintenance@.service": SERVICE.format(command=command), **timers}
