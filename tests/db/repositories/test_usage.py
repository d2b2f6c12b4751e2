"""Ceilings of tokens: what is reserved and spent never passes them, whoever asks at once."""

from __future__ import annotations

import threading
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from tests.logins import logged_in
from tests.tenancy import make_scope

CEILING = 100_000
OURS, THEIRS = Scope.tenant(uuid4()), Scope.user(uuid4())


def spend(work: UnitOfWork, scope: Scope, *bounds: int, spent: int) -> list[str]:
    """Reserve tokens for texts, and settle what a call took; return the verdicts."""
    allowances = work.usage.reserve({scope: bounds})
    work.usage.settle({scope: spent}, allowances)
    return list(allowances[scope].verdicts)


def sleep_until_tomorrow(work: UnitOfWork) -> None:
    """Make today yesterday, for what was used."""
    work.session.execute(text("UPDATE embedding_usage SET day = day - 1"))


def test_without_a_ceiling_all_is_granted_and_counted(work: UnitOfWork) -> None:
    """The tokens of what is everybody's are counted, too."""
    allowances = work.usage.reserve({OURS: [10**9]})
    work.usage.settle({OURS: 7, None: 5}, allowances)

    assert allowances[OURS].verdicts == ["granted"]
    assert [(each.scope, each.spent_tokens) for each in work.usage.list_today()] == [(str(OURS), 7)]
    assert work.usage.get_figures().spent_tokens == 12


def test_the_first_texts_that_fit_are_granted_and_none_overtakes(work: UnitOfWork) -> None:
    """Calls under way may give back enough for the next; what is spent does not come back."""
    work.usage.set_ceiling(CEILING)
    allowance = work.usage.reserve({OURS: [60_000, 50_000, 1_000]})[OURS]
    assert (allowance.verdicts, allowance.granted) == (["granted", "waits", "waits"], 1)
    assert work.usage.reserve({OURS: [50_000]})[OURS].verdicts == ["waits"]
    assert work.usage.reserve({THEIRS: [50_000]})[THEIRS].verdicts == ["granted"]

    work.usage.settle({OURS: 20_000}, {OURS: allowance})

    assert work.usage.reserve({OURS: [80_000]})[OURS].verdicts == ["granted"]
    (ours,) = (each for each in work.usage.list_today() if each.scope == str(OURS))
    assert (ours.spent_tokens, ours.reserved_tokens, ours.ceiling, ours.is_full) == (
        20_000, 80_000, CEILING, False,
    )  # fmt: skip


def test_a_full_scope_opens_the_next_day_and_where_its_ceiling_is_raised(
    work: UnitOfWork,
) -> None:
    """Its own ceiling stands before that of all, and 0 embeds nothing."""
    work.usage.set_ceiling(CEILING)
    assert spend(work, OURS, 60_000, 50_000, spent=60_000) == ["granted", "waits"]
    assert spend(work, OURS, 50_000, 1, spent=0) == ["full", "full"]
    assert work.usage.get_figures().full_scopes == 1
    work.usage.set_ceiling(2 * CEILING, OURS)
    assert work.usage.get_figures().full_scopes == 0
    assert spend(work, OURS, 50_000, spent=50_000) == ["granted"]
    work.usage.set_ceiling(0, OURS)
    assert spend(work, OURS, 1, spent=0) == ["full"]
    assert work.usage.list_ceilings() == {"default": CEILING, str(OURS): 0}

    work.usage.set_ceiling(None, OURS)
    sleep_until_tomorrow(work)

    assert spend(work, OURS, 60_000, spent=60_000) == ["granted"]
    assert work.usage.get_figures().spent_tokens == 60_000


def test_what_a_dead_process_reserved_counts_for_the_day(work: UnitOfWork) -> None:
    """Its call may have been counted: nobody will know."""
    work.usage.set_ceiling(CEILING)
    work.usage.reserve({OURS: [90_000]})

    assert spend(work, OURS, 20_000, spent=0) == ["waits"]
    sleep_until_tomorrow(work)
    assert spend(work, OURS, 20_000, spent=0) == ["granted"]


@pytest.mark.parametrize("tokens", [-1, 24_999, 10**12 + 1])
def test_a_ceiling_has_room_for_the_longest_text(work: UnitOfWork, tokens: int) -> None:
    """Or it would never be embedded, on no day."""
    with pytest.raises(InvalidValue, match="0, which embeds nothing, or 25000 to"):
        work.usage.set_ceiling(tokens)


def test_old_usage_is_purged(work: UnitOfWork) -> None:
    """A year is kept, to be compared with."""
    for days in (0, 365, 500):
        spend(work, OURS, 1, spent=1)
        work.session.execute(
            text("UPDATE embedding_usage SET day = day - :days WHERE day > current_date - 2"),
            {"days": days + 2},
        )
    work.usage.purge()

    assert work.session.scalar(text("SELECT count(*) FROM embedding_usage")) == 2


def test_any_number_at_once_reserve_no_more_than_the_ceiling(database: Database) -> None:
    """Each looks, waits for its turn, and takes what is left."""
    with database.unit_of_work() as work:
        work.usage.set_ceiling(CEILING)
        work.commit()
    granted: list[int] = []

    def take() -> None:
        for _ in range(10):
            with database.unit_of_work() as work:
                both = work.usage.reserve({OURS: [3_000, 3_000], THEIRS: [5_000]})
                work.commit()
            granted.append(both[OURS].reserved_tokens)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(granted) == 99_000
    with database.unit_of_work() as work:
        assert {each.scope: each.reserved_tokens for each in work.usage.list_today()} == {
            str(OURS): 99_000,
            str(THEIRS): CEILING,
        }


def test_a_service_knows_whether_it_has_a_ceiling_and_nothing_else(database: Database) -> None:
    """It neither reads nor writes; an erased tenant leaves nothing."""
    with database.unit_of_work() as work:
        ours, theirs, free = (make_scope(work, tenant=True) for _ in range(3))
        for scope in (ours, theirs):
            work.usage.set_ceiling(CEILING, scope)
            spend(work, scope, 5_000, spent=5_000)
        work.commit()
    with logged_in(database, "rag_read_write") as application:
        with application.unit_of_work(ours) as work:
            assert work.usage.is_limited()
            assert work.usage.list_today() == []
            assert work.usage.get_figures().spent_tokens == 0
            assert work.jobs.stats().over_ceiling == 0
            assert work.jobs.claim("embed", worker_id="w", limit=1, lease_seconds=60) == []
            work.usage.settle({ours: 1}, {})  # passes over it: its tokens are in no metric
        with application.unit_of_work(free) as work:
            assert not work.usage.is_limited()
        for table in ("embedding_usage", "token_ceilings"):
            for write in ("SELECT FROM {}", "UPDATE {} SET scope = scope", "LOCK {}"):
                with (
                    application.engine.connect() as connection,
                    pytest.raises(ProgrammingError, match="permission denied"),
                ):
                    connection.execute(text(write.format(table)))

    with database.unit_of_work() as work:
        assert theirs.tenant_id is not None
        work.tenancy.delete_tenant(theirs.tenant_id)
        work.commit()
    with database.unit_of_work() as work:
        assert [each.scope for each in work.usage.list_today()] == [str(ours)]
        assert work.usage.list_ceilings() == {str(ours): CEILING}
