"""A long export goes in within bounded memory: ``python -m tests.prove.chat_memory``.

It writes a file in ChatGPT's format, imports it with the command that a person would use, into a
server of its own, and asks the system how much memory that process had at most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

from db.embedded import EmbeddedServer
from db.engine import Database
from db.migrations import upgrade
from db.settings import Settings
from services.cli.output import fail, say, table
from tests.factories import exports

MEBIBYTES = 2048
"""Length of the export that the requirement names."""

MAX_MEMORY_MIB = 500
"""What the requirement allows for it."""

CONVERSATIONS = 100
"""Are generated at a time; each such part has texts and identifiers of its own."""

PGCORPUS = Path(sys.executable).with_name("pgcorpus")


def main() -> int:
    """Write, import, measure, and show it.

    Returns:
        The exit code: 0 where everything went in, and the memory stayed below the limit.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=MEBIBYTES, help="length of the export")
    mebibytes = parser.parse_args().mebibytes
    with tempfile.TemporaryDirectory(prefix="pgcorpus-prove-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # PostgreSQL runs as another account when this runs as root
        export = home / "conversations.json"
        say(f"writing an export of {mebibytes:,} MiB")
        expected = write_export(export, mebibytes * 1024**2)
        server = EmbeddedServer(home / "server", settings={"fsync": "off"})
        server.start()
        try:
            database = Database(Settings(database_url=server.url))
            upgrade(database)
            database.close()
            report, seconds, peak_mib = measured(server, export)
        finally:
            server.destroy()
    table(
        "Import of a long export",
        ["MiB", "conversations", "messages", "seconds", "messages/s", "MiB/s", "peak MiB"],
        [
            (
                f"{mebibytes:,}",
                f"{report['added']:,}",
                f"{report['messages']:,}",
                f"{seconds:,.0f}",
                f"{report['messages'] / seconds:,.0f}",
                f"{mebibytes / seconds:.1f}",
                f"{peak_mib:.0f}",
            )
        ],
    )
    if report["added"] != expected:
        fail(f"{expected} conversations were written, {report['added']} were imported")
    if peak_mib >= MAX_MEMORY_MIB:
        fail(f"the import took {peak_mib:.0f} MiB of memory; allowed are {MAX_MEMORY_MIB}")
    return int(report["added"] != expected or peak_mib >= MAX_MEMORY_MIB)


def write_export(file: Path, size_bytes: int) -> int:
    """Write an export of about that length.

    Returns:
        How many conversations it has.
    """
    written = 0
    with file.open("w") as export:
        export.write("[")
        for seed in count():
            for conversation in exports.chatgpt(
                CONVERSATIONS, turns=30, branches=1, images=1, words=80, seed=seed
            ):
                export.write("," * (written > 0) + json.dumps(conversation))
                written += 1
            if export.tell() >= size_bytes:
                export.write("]")
                return written
    raise AssertionError  # count() does not end


def measured(server: EmbeddedServer, export: Path) -> tuple[dict[str, Any], float, float]:
    """Import a file.

    Returns:
        The command's report, its seconds, and the most memory it had, in MiB.

    Raises:
        RuntimeError: The command failed.
    """
    address = server.url.render_as_string(hide_password=False)
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [PGCORPUS, "import", "chat", export, "--json"],
            env=os.environ | {"DATABASE_URL": address},
            stdout=said,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        said.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"pgcorpus ended with exit code {process.returncode}")
        return json.load(said), seconds, used.ru_maxrss / 1024  # kilobytes, says getrusage(2)


if __name__ == "__main__":
    sys.exit(main())
