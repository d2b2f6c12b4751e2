"""Ceilings of tokens: workers at once, a real server that counts, and a day that ends."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import text

from pgcorpus.db.engine import Database
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import MEMORY
from pgcorpus.services.embedding.embed import EmbeddingService
from pgcorpus.services.embedding.openai import OpenAIEmbedder
from pgcorpus.services.jobs.handlers import EmbedHandler
from pgcorpus.services.jobs.worker import Worker
from pgcorpus.services.memory.service import MemoryService
from tests.logins import logged_in
from tests.prove import proofs
from tests.services.embedding.loopback_api import Answer, LoopbackAPI
from tests.tenancy import make_scope

CEILING = 25_000
BYTES = 500
"""Length of a memory: the server counts each byte as a token, and no tokenizer makes more."""
MEMORIES = 80


def count_bytes(sent: str) -> int:
    """Count the most tokens that a text can take."""
    return len(sent.encode())


def remember(database: Database, scope: Scope, word: str, memories: int = MEMORIES) -> None:
    """Write memories of a scope that begin with a word."""
    owner = "tenant_id" if scope.tenant_id else "user_id"
    with database.unit_of_work() as work:
        work.enter(scope)
        work.session.execute(
            text(
                f"INSERT INTO memory_nodes (id, {owner}, scope, source, conversation_id,"  # noqa: S608 - of this file
                " sequence_index, human_content)"
                " SELECT 'mem_' || n, :owner, :scope, 'claude', 'c', n,"
                " rpad(:word || ' ' || n || ' ', :bytes, 'x') FROM generate_series(1, :n) AS n"
            ),
            {
                "owner": scope.tenant_id or scope.user_id,
                "scope": str(scope),
                "word": word,
                "bytes": BYTES,
                "n": memories,
            },
        )
        work.commit()


@pytest.fixture
def scopes(database: Database) -> tuple[Scope, Scope]:
    """A tenant with a ceiling, and another without; memories are embedded by a hosted model."""
    with database.unit_of_work() as work:
        work.models.add_model(proofs.MODEL, dimensions=proofs.DIMENSIONS, provider="openai")
        work.models.use_model("memory", proofs.MODEL)
        limited, free = (make_scope(work, tenant=True) for _ in range(2))
        work.usage.set_ceiling(CEILING, limited)
        work.commit()
    return limited, free


@pytest.fixture
def api() -> Iterator[LoopbackAPI]:
    """A server that counts bytes."""
    with LoopbackAPI(proofs.DIMENSIONS, latency_seconds=0.02, count_tokens=count_bytes) as api:
        yield api


def count_sent(api: LoopbackAPI) -> Counter[str]:
    """Count the tokens that the server counted, by the first word of the text."""
    tokens: Counter[str] = Counter()
    for each in api.texts:
        tokens[each.split()[0]] += count_bytes(each)
    return tokens


def pass_midnight(database: Database) -> None:
    """Make today yesterday, for what was used."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE embedding_usage SET day = day - 1"))


def run_workers(database: Database, api: LoopbackAPI, count: int) -> None:
    """Run worker processes at once, until all jobs are done but those that wait for the next day.

    Those that wait for others' reservations are due at once, in place of after some seconds.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(proofs.worker(database, api)) for _ in range(count)]
        left = 1
        deadline = time.monotonic() + 60
        while left and time.monotonic() < deadline:
            with database.engine.begin() as connection:
                connection.execute(
                    text(
                        "UPDATE jobs SET not_before = now()"
                        " WHERE kind = 'embed' AND status = 'pending' AND not_before > now()"
                    )
                )
                connection.execute(text("SELECT pg_notify('pgcorpus_jobs', '')"))
            with database.unit_of_work() as work:
                stats = work.jobs.stats()
                embed = stats.depth["embed"]
                left = embed.get("pending", 0) + embed.get("running", 0) - stats.over_ceiling
            time.sleep(0.05)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            _, shown = process.communicate(timeout=60)
            assert process.returncode == 0, shown
        assert not left


def test_workers_at_once_never_pass_a_ceiling_and_go_on_the_next_day(
    database: Database, scopes: tuple[Scope, Scope], api: LoopbackAPI
) -> None:
    """A job that does not fit waits without an attempt, is shown, and keeps no other waiting."""
    limited, free = scopes
    remember(database, limited, "limited")
    remember(database, free, "free")

    run_workers(database, api, 3)

    tokens = count_sent(api)
    assert CEILING - 2 * (BYTES + 20) < tokens["limited"] <= CEILING
    assert tokens["free"] > CEILING
    assert not any(
        {each.split()[0] for each in request.texts} == {"limited", "free"}
        for request in api.requests
    )
    with database.engine.connect() as connection:
        left = connection.execute(
            text(
                "SELECT scope, max(attempts), count(*) FROM jobs WHERE kind = 'embed'"
                " AND status = 'pending' AND not_before <= now() GROUP BY scope"
            )
        ).all()
    ((scope, attempts, waiting),) = left
    assert (scope, attempts) == (str(limited), 0)
    shown = json.loads(
        subprocess.run(
            [proofs.PGCORPUS, "jobs", "stats", "--json"],
            check=True,
            capture_output=True,
            text=True,
            env=proofs.environment(database),
        ).stdout
    )
    assert shown["over_ceiling"] == waiting
    assert shown["tokens_today"]["full_scopes"] == 1
    assert shown["tokens_today"]["reserved_tokens"] == 0
    assert shown["scopes_today"][0] == {
        "scope": str(limited),
        "spent_tokens": tokens["limited"],
        "reserved_tokens": 0,
        "ceiling": CEILING,
        "is_full": True,
    }

    pass_midnight(database)
    handler = EmbedHandler(database, MEMORY, embedder=make_embedder(api))
    Worker(database, [handler], concurrency=1).run(once=True)
    assert CEILING < count_sent(api)["limited"] <= 2 * CEILING


def test_a_command_stops_at_the_ceiling_and_says_so(
    database: Database, scopes: tuple[Scope, Scope], api: LoopbackAPI
) -> None:
    """It embeds what others may, and its exit code is 1."""
    limited, free = scopes
    remember(database, limited, "limited")
    remember(database, free, "free", 3)

    done = subprocess.run(
        [proofs.PGCORPUS, "embed", "--corpus", "memory", "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=proofs.environment(database, OPENAI_API_KEY="k", OPENAI_BASE_URL=api.base_url),
    )

    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert count_sent(api)["limited"] <= CEILING
    assert report["waiting"] > 0
    assert report["embedded"] + report["waiting"] == MEMORIES + 3
    assert f"{report['waiting']} wait: a ceiling of tokens a day" in done.stderr


def make_embedder(api: LoopbackAPI) -> OpenAIEmbedder:
    """Return the hosted model, which gives up soon."""
    return OpenAIEmbedder(
        proofs.MODEL,
        proofs.DIMENSIONS,
        api_key="k",
        base_url=api.base_url,
        patience_seconds=0.2,
        timeout_seconds=0.2,
    )


@pytest.mark.parametrize(
    ("answer", "spends"),
    [
        (Answer(status=503), False),
        (Answer(status=504), True),
        (Answer(disconnect=True), True),
        (Answer(hang_seconds=5), True),
    ],
)
def test_what_may_have_been_counted_without_an_answer_is_spent(
    database: Database, scopes: tuple[Scope, Scope], answer: Answer, spends: bool
) -> None:
    """It is then sent no second time, for which no tokens are reserved; a refusal is free."""
    limited, _free = scopes
    remember(database, limited, "limited", 1)
    with LoopbackAPI(proofs.DIMENSIONS, answers=lambda *_: answer) as api:
        handler = EmbedHandler(database, MEMORY, embedder=make_embedder(api))
        report = Worker(database, [handler], concurrency=1).run(once=True)

    assert report.counts == {"put_off": 1}
    with database.unit_of_work() as work:
        (usage,) = work.usage.list_today()
    assert usage.reserved_tokens == 0
    assert (BYTES <= usage.spent_tokens < BYTES + 40) == spends
    if spends:
        assert len(api.requests) == 1


def test_a_service_leaves_what_has_a_ceiling_to_workers(
    database: Database, scopes: tuple[Scope, Scope], api: LoopbackAPI
) -> None:
    """Its login counts no tokens, and so spends none of a ceiling."""
    limited, free = scopes
    with logged_in(database, "rag_read_write") as application:
        service = MemoryService(application, embedder=make_embedder(api))
        service.remember("limited question", "answer", conversation_id="c", scope=limited)
        service.remember("free question", "answer", conversation_id="c", scope=free)

    assert set(count_sent(api)) == {"free"}
    assert EmbeddingService(database, embedder=make_embedder(api)).embed("memory").embedded == 1
    assert set(count_sent(api)) == {"free", "limited"}
