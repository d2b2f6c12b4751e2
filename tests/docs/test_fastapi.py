"""The service of docs/how-to/fastapi.md, served by uvicorn and asked over HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from sqlalchemy import URL, create_engine, text

from pgcorpus.db.engine import Database
from tests import factories
from tests.conftest import Databases
from tests.docs.pages import list_blocks
from tests.logins import logged_in

KEY = "a key of thirty-two bytes or more, of no worth"


def sign(tenant: UUID | str | None, *, key: str = KEY, seconds: float = 60, **more: str) -> str:
    """Make a token; without a tenant, one that lacks the claim."""
    claims = {"sub": "ada", "exp": datetime.now(UTC) + timedelta(seconds=seconds), **more}
    return jwt.encode(claims if tenant is None else claims | {"tenant": str(tenant)}, key, "HS256")


@dataclass(frozen=True)
class Served:
    """The service in a process of its own.

    Attributes:
        process: That of uvicorn.
        url: The address it listens on.
        ours: A tenant.
        theirs: Another.
        log: Everything that it wrote.
        database: As its owner.
    """

    process: subprocess.Popen[str]
    url: str
    ours: UUID
    theirs: UUID
    log: Path
    database: Database

    def client(self, token: str | None) -> httpx.Client:
        """Return a client that shows a token, or none."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)


def wait_for_address(process: subprocess.Popen[str], log: Path) -> str:
    """Read from the log where uvicorn listens."""
    with log.open() as written:
        said = ""
        while (found := re.search(r"running on (http://\S+)", said)) is None:
            assert process.poll() is None, said
            said += written.readline()
    return found[1]


@contextmanager
def serve(database: Database, folder: Path) -> Iterator[Served]:
    """Serve the blocks of the page as a module, for two new tenants of a database."""
    with database.unit_of_work() as work:
        factories.bind(work.session)
        ours, theirs = factories.TenantFactory().id, factories.TenantFactory().id
        work.commit()
    code = list_blocks("how-to/fastapi.md", "python")
    (folder / "service.py").write_text("\n\n".join(code))
    log = folder / "log"
    with logged_in(database, "rag_read_write") as service, log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "service:app", "--port", "0"],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "DATABASE_URL": service.url.render_as_string(hide_password=False),
                "DB_CONNECT_RETRY": "0",
                "TOKEN_KEY": KEY,
            },
            stdout=output,
            stderr=output,
            text=True,
        )
        try:
            address = wait_for_address(process, log)
            yield Served(process, address, ours, theirs, log, database)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def served(
    databases: Databases, hosted: URL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The service, for all tests but the one that ends it."""
    with (
        databases.opened(hosted.database or "", owner=hosted) as database,
        serve(database, tmp_path_factory.mktemp("service")) as served,
    ):
        yield served


def test_each_tenant_has_its_own_documents_and_memories(served: Served) -> None:
    """By synchronous and asyncio endpoints, and by units of work of both kinds."""
    with served.client(sign(served.ours)) as ours, served.client(sign(served.theirs)) as theirs:
        for client, said in ((ours, "the bridge opens at nine"), (theirs, "the bridge is closed")):
            assert client.put("/documents/bridge", json={"text": said}).status_code == 201
            exchange = {"conversation": "talk", "human": f"I heard {said}"}
            assert client.post("/memories", json=exchange).status_code == 201
            hits = client.get("/documents", params={"q": "bridge"}).json()["hits"]
            assert [hit["text"] for hit in hits] == [said]
            assert client.get("/memories", params={"q": "bridge"}).json() == {
                "memories": [f"I heard {said}"]
            }
            assert client.get("/conversations/talk").json() == {"said": [f"I heard {said}"]}

        assert ours.delete("/documents/bridge").json() == {"deleted": 1}
        assert ours.get("/documents", params={"q": "bridge"}).json()["hits"] == []
        assert len(theirs.get("/documents", params={"q": "bridge"}).json()["hits"]) == 1
        assert ours.delete("/documents/bridge").json() == {"deleted": 0}


def test_a_request_without_a_valid_token_is_refused(served: Served) -> None:
    """None, a foreign signature, one that is over, one without a tenant or with no UUID."""
    tokens = [
        None,
        "nonsense",
        sign(served.ours, key="another key of thirty-two bytes or more"),
        sign(served.ours, seconds=-60),
        sign(None),
        sign("everybody"),
        jwt.encode({"sub": "ada", "tenant": str(served.ours), "exp": 2**33}, None, "none"),
    ]
    for token in tokens:
        with served.client(token) as client:
            for method, path in (("GET", "/documents?q=x"), ("DELETE", "/documents/x")):
                answer = client.request(method, path)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert client.get("/live").status_code == 200


def test_errors_are_answers_that_tell_the_caller_what_is_the_callers(
    served: Served, databases: Databases
) -> None:
    """And readiness follows the database, while liveness does not ask it."""
    with served.client(sign(served.ours)) as client, served.client(sign(uuid4())) as stranger:
        empty = client.get("/documents", params={"q": " "})
        assert (empty.status_code, "question" in empty.json()["detail"]) == (422, True)
        assert client.put("/documents/x", json={"text": " "}).status_code == 422
        exchange = {"conversation": "talk", "human": "nobody knows this tenant"}
        assert stranger.post("/memories", json=exchange).status_code == 422
        assert client.get("/ready").status_code == 200

        name = served.database.url.database
        superuser = create_engine(
            databases.superuser_of(served.database.url), isolation_level="AUTOCOMMIT"
        )
        with superuser.connect() as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0'))
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE usename LIKE 'rag_read_write_%' AND datname = current_database()"
                )
            )
            refused = client.get("/documents", params={"q": "bridge"})
            ready, live = client.get("/ready"), client.get("/live")
            connection.execute(text(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1'))
        superuser.dispose()

        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert refused.json() == {"detail": "this cannot be answered now"}
        assert (ready.status_code, live.status_code) == (503, 200)
        assert client.get("/documents", params={"q": "bridge"}).status_code == 200
        assert client.get("/ready").status_code == 200


def test_what_the_service_has_buffered_is_written_when_it_ends(
    database: Database, tmp_path: Path
) -> None:
    """The log of its searches; and it leaves no connection."""
    with serve(database, tmp_path) as served:
        with served.client(sign(served.ours)) as client:
            client.get("/documents", params={"q": "bridge"})
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(30)

        with database.unit_of_work() as work:
            assert work.session.scalar(text("SELECT count(*) FROM query_performance_log")) == 1
            left = "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'rag_read_write_%'"
            assert work.session.scalar(text(f"{left} AND datname = current_database()")) == 0
        assert "Traceback" not in served.log.read_text()
