"""A long export goes in within bounded memory: ``python -m tests.prove.chat_memory``.

It writes files in ChatGPT's format, imports each with the command that a person would use, into a
server of its own, and asks the system how much memory that process had at most: a long file of
usual conversations, and short files of the longest that are read, one after the other, which come
a second time with another last message each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pgcorpus.db.embedded import EmbeddedServer
from pgcorpus.db.engine import Database
from pgcorpus.db.migrations import upgrade
from pgcorpus.db.settings import Settings
from pgcorpus.services.cli.output import fail, say, table
from tests.command import PGCORPUS
from tests.factories import exports

MEBIBYTES = 2048
"""Length of the export that the requirement names."""

MAX_MEMORY_MIB = 500
"""The memory that the requirement allows for it."""

NEIGHBOURS = 4
NEIGHBOUR_MEBIBYTES = 55
"""The length of one conversation; a little more is refused."""

SENTENCES = {
    "ASCII": ("What a price is worth is what a buyer gives up for it. ", True),
    "some emoji": (
        "What a price is worth is what a buyer gives up for it. " * 20 + "\U0001f4b6",
        False,
    ),
    "emoji": ("\U0001f4b6 \U0001f4c8 ", False),
    "Chinese": ("\u4ef7\u683c\u662f\u4e70\u5bb6\u4ed8\u51fa\u7684\u3002", False),
}
"""Sentences of the long conversations, and whether other characters than ASCII are escaped."""

CONVERSATIONS = 100
"""Are generated at a time; each such part has texts and identifiers of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, import, measure, and show it.

    Args:
        arguments: In place of those of the process.

    Returns:
        The exit code: 0 where everything went in, and the memory stayed below the limit.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=MEBIBYTES, help="length of the long file")
    mebibytes = parser.parse_args(arguments).mebibytes
    failed = False
    rows = []
    with tempfile.TemporaryDirectory(prefix="pgcorpus-prove-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # PostgreSQL runs as another account when this runs as root
        server = EmbeddedServer(home / "server", settings={"fsync": "off"})
        server.start()
        try:
            database = Database(Settings(database_url=server.url))
            upgrade(database)
            database.close()
            for name, export, expected in exports_in(home, mebibytes):
                report, seconds, peak_mib = measure(server, export)
                length_mib = export.stat().st_size / 1024**2
                done = report["added"] + report["updated"]
                rows.append(
                    (
                        name,
                        f"{length_mib:,.0f}",
                        f"{done:,}",
                        f"{report['messages']:,}",
                        f"{seconds:,.0f}",
                        f"{report['messages'] / seconds:,.0f}",
                        f"{length_mib / seconds:.1f}",
                        f"{peak_mib:.0f}",
                    )
                )
                if done != expected:
                    failed = True
                    fail(f"{name}: {expected} conversations were written, {done} were imported")
                if peak_mib >= MAX_MEMORY_MIB:
                    failed = True
                    fail(f"{name}: it took {peak_mib:.0f} MiB; allowed are {MAX_MEMORY_MIB}")
        finally:
            server.destroy()
    table(
        "Memory of imports",
        ["export", "MiB", "conversations", "messages", "s", "messages/s", "MiB/s", "peak MiB"],
        rows,
    )
    return int(failed)


def exports_in(home: Path, mebibytes: int) -> Iterator[tuple[str, Path, int]]:
    """Write the exports, each when it is asked for: its name, its path and its conversations."""
    file = home / "conversations.json"
    say(f"writing an export of {mebibytes:,} MiB")
    yield "usual", file, write_export(file, mebibytes * 1024**2)
    for name, (sentence, escaped) in SENTENCES.items():
        for coming, end in (("new", ""), ("changed", "!")):
            write_neighbours(file, name, sentence, end, escaped=escaped)
            yield f"{name}, {coming}", file, NEIGHBOURS


def write_neighbours(file: Path, name: str, sentence: str, end: str, *, escaped: bool) -> None:
    """Write conversations of ``NEIGHBOUR_MEBIBYTES`` and a hundred turns."""
    turns = 100
    length = len(json.dumps(sentence, ensure_ascii=escaped).encode()) - 2
    said = sentence * (NEIGHBOUR_MEBIBYTES * 1024**2 // turns // length - 1)
    with file.open("w", encoding="utf-8") as export:
        for number in range(NEIGHBOURS):
            (conversation,) = exports.chatgpt(1, turns=turns, words=1, seed=number)
            conversation["id"] = conversation["conversation_id"] = f"{name} {number}"
            for n, node in enumerate(conversation["mapping"].values()):
                if node["message"] and node["message"]["content"]["parts"] != [""]:
                    node["message"]["content"]["parts"] = [f"{n} {said}"]
            node["message"]["content"]["parts"][0] += end
            export.write("[,"[number > 0])
            json.dump(conversation, export, ensure_ascii=escaped)
        export.write("]")


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


def measure(server: EmbeddedServer, export: Path) -> tuple[dict[str, Any], float, float]:
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
