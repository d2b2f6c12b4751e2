"""The rows that a dump holds, counted in the dump itself."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE
from typing import IO, Final

from pgcorpus.services.ops.backup.programs import Programs

COPY: Final = re.compile(rb'COPY ((?:"(?:[^"]|"")+"|[^".(\s]+))\.((?:"(?:[^"]|"")+"|[^".(\s]+)) ')
END: Final = b"\\.\n"


class RowCounter:
    """Counts the rows of a dump while it is written.

    Attributes:
        rows: Schema and name of a table → its rows in the dump.
    """

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()

    @contextmanager
    def counting(self, programs: Programs) -> Iterator[IO[bytes]]:
        """Provide where the dump is written to, and have counted it at the end.

        Raises:
            ProgramFailed: ``pg_restore`` cannot read the dump.
        """
        with programs.running("pg_restore", "--data-only", "--file=-", stdin=PIPE) as reading:
            assert reading.stdin is not None  # noqa: S101 - pipes were asked for
            assert reading.stdout is not None  # noqa: S101
            thread = threading.Thread(target=self._count, args=(reading.stdout,), daemon=True)
            thread.start()
            yield reading.stdin
            reading.stdin.close()
            thread.join()

    def _count(self, lines: IO[bytes]) -> None:
        table: str | None = None
        rows = 0
        for line in lines:
            if table is None:
                if (begun := COPY.match(line)) is not None:
                    table, rows = ".".join(map(_unquote, begun.groups())), 0
            elif line == END:
                self.rows[table] += rows
                table = None
            else:
                rows += 1


def _unquote(name: bytes) -> str:
    text = name.decode()
    return text[1:-1].replace('""', '"') if text.startswith('"') else text
