"""A process of many clients, each of which writes, searches, and tells what became of it.

``python -m tests.faults.crowd CLIENTS`` prints JSON: identifiers that were kept, and errors.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import DataLayerError
from pgcorpus.db.settings import Settings
from pgcorpus.services.search.service import SearchService


class Crowd:
    """Clients of one process, which begin at the same moment.

    Args:
        database: The database of all of them.
        clients: How many there are.
    """

    def __init__(self, database: Database, clients: int) -> None:
        self._database = database
        self._search = SearchService(database)
        self._begin = threading.Barrier(clients)
        self.kept: list[str] = []
        self.errors: Counter[str] = Counter()
        self.slowest_seconds = 0.0

    def run(self, number: int) -> None:
        """Write a conversation of two turns, and search."""
        self._begin.wait()
        began = time.monotonic()
        try:
            with self._database.unit_of_work() as work:
                talk = work.chat.create(f"client {number}").id
                work.chat.append(talk, role="user", content=f"What does plan {number} cost?")
                work.chat.append(talk, role="assistant", content=f"Plan {number} is free.")
                work.commit()
            self.kept.append(str(talk))
            self._search.search("plan", corpus="chat", mode="text", limit=3)
        except DataLayerError as error:
            self.errors[type(error).__name__] += 1
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)


def main(clients: int) -> None:
    """Run the clients, and print what became of them."""
    database = Database(Settings.from_env(os.environ))
    crowd = Crowd(database, clients)
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(crowd.run, range(clients)))
    database.close()
    report = {
        "kept": crowd.kept,
        "errors": crowd.errors,
        "slowest_seconds": crowd.slowest_seconds,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]))
