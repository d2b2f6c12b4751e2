"""Tenants and users, and whose memories they see."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    AlreadyExists,
    InvalidValue,
    MissingReference,
    MissingScope,
    NotFound,
    NotPermitted,
)
from pgcorpus.db.models import Job, MemoryEmbedding, MemoryNode, Tenant, User
from pgcorpus.db.repositories.tenancy import scope_of, slug_of, tenant_sql, user_sql
from pgcorpus.db.scope import Scope
from pgcorpus.db.uow import UnitOfWork
from tests import factories
from tests.tenancy import DOCUMENTED, READABLE, UNSCOPED, document_of

ODD = "O'Brien \\ Söhne {x} 100%; --"


def as_application(work: UnitOfWork, role: str = "rag_read_write") -> None:
    """Go on as a role that row security binds."""
    work.session.execute(text(f"SET LOCAL ROLE {role}"))


def test_a_tenant_is_found_by_its_key_and_its_slug(work: UnitOfWork) -> None:
    """The slug is made of the name."""
    tenant = work.tenancy.create_tenant("Müller & Söhne", settings={"plan": "large"})

    assert tenant.slug == "muller-sohne"
    assert work.tenancy.get_tenant(tenant.id) is tenant
    assert work.tenancy.find_tenant("muller-sohne") is tenant
    assert work.tenancy.find_tenant("muller") is None
    assert tenant.settings == {"plan": "large"}


def test_a_slug_keeps_within_its_column() -> None:
    """Whatever the length of the name."""
    assert slug_of("a" * 99 + " " + "b" * 99) == "a" * 99


@pytest.mark.parametrize("name", ["", "  ", "東京"])
def test_a_name_without_a_letter_or_digit_gives_no_slug(name: str) -> None:
    """One has to be chosen."""
    with pytest.raises(InvalidValue, match="name one with --slug"):
        slug_of(name)


def test_a_slug_is_taken_once(database: Database) -> None:
    """By whoever comes first."""
    with database.unit_of_work() as work:
        work.tenancy.create_tenant("One", slug="same")
        work.commit()

    with pytest.raises(AlreadyExists, match="slug"), database.unit_of_work() as work:
        work.tenancy.create_tenant("Other", slug="same")


def test_a_user_is_found_by_key_and_by_identity(work: UnitOfWork) -> None:
    """The same external_id at another provider is somebody else."""
    user = work.tenancy.create_user(auth_provider="test", external_id="ann", email="ann@x.org")

    assert work.tenancy.get_user(user.id) is user
    assert work.tenancy.find_identity("test", "ann") is user
    assert work.tenancy.find_identity("other", "ann") is None


@pytest.mark.parametrize("role", ["rag_read_write", "rag_admin", None])
def test_a_scope_must_be_somebodys(work: UnitOfWork, role: str | None) -> None:
    """A login that sees every user is told whose the user is; others, that it may be a tenant."""
    ours, theirs = (work.tenancy.create_tenant(name).id for name in ("Ours", "Theirs"))
    ann, bob, person = (
        work.tenancy.create_user(auth_provider="test", external_id=name, tenant_id=tenant).id
        for name, tenant in (("ann", ours), ("bob", theirs), ("person", None))
    )
    if role is not None:
        as_application(work, role)

    for scope in (Scope.tenant(ours), Scope.tenant(ours, user_id=ann), Scope.user(person)):
        work.enter(scope)
        work.tenancy.require_scope()
    for scope, told in (
        (Scope.tenant(uuid4()), "there is no tenant"),
        (Scope.tenant(ours, user_id=bob), f"{ours} has no user {bob}"),
        (Scope.tenant(ours, user_id=person), f"{ours} has no user {person}"),
        (Scope.user(uuid4()), "no user .* without a tenant"),
    ):
        work.enter(scope)
        with pytest.raises(NotFound, match=told):
            work.tenancy.require_scope()
    work.enter(Scope.user(ann))
    if role == "rag_read_write":
        with pytest.raises(NotFound, match="use --tenant-id;"):
            work.tenancy.require_scope()
    else:
        with pytest.raises(MissingScope, match=f"use --tenant-id {ours}"):
            work.tenancy.require_scope()


def test_nobody_is_of_a_tenant_that_does_not_exist(database: Database) -> None:
    """The error names the command that lists tenants."""
    with (
        pytest.raises(MissingReference, match="pgcorpus tenants list"),
        database.unit_of_work() as work,
    ):
        work.tenancy.create_user(auth_provider="test", external_id="ann", tenant_id=uuid4())


def test_whom_nobody_knows_is_not_found(work: UnitOfWork) -> None:
    """Neither got nor erased."""
    for call in (
        work.tenancy.get_tenant,
        work.tenancy.get_user,
        work.tenancy.delete_tenant,
        work.tenancy.delete_user,
    ):
        with pytest.raises(NotFound, match="list"):
            call(uuid4())


def test_users_of_a_tenant_share_its_scope(work: UnitOfWork) -> None:
    """Others have their own; the scope of the row is the same."""
    tenant = work.tenancy.create_tenant("Acme")
    shared = work.tenancy.create_user(auth_provider="t", external_id="a", tenant_id=tenant.id)
    alone = work.tenancy.create_user(auth_provider="t", external_id="b")

    assert scope_of(shared) == Scope.tenant(tenant.id, user_id=shared.id)
    assert scope_of(alone) == Scope.user(alone.id)
    assert [str(scope_of(each)) for each in (shared, alone)] == [shared.scope, alone.scope]


def test_tenants_are_listed_by_slug_page_by_page(work: UnitOfWork) -> None:
    """No page repeats one."""
    for slug in ("b", "c", "a"):
        factories.TenantFactory(slug=slug)

    first = work.tenancy.list_tenants(limit=2)
    second = work.tenancy.list_tenants(limit=2, after=first[-1].slug)

    assert [tenant.slug for tenant in (*first, *second)] == ["a", "b", "c"]


def test_users_are_listed_page_by_page(work: UnitOfWork) -> None:
    """All came in one transaction, at the same time: none is lost between pages."""
    tenant = factories.TenantFactory()
    users = {factories.UserFactory(tenant=tenant).id for _ in range(3)}
    stranger = factories.UserFactory()

    first = work.tenancy.list_users(limit=2)
    second = work.tenancy.list_users(limit=9, after=first[-1])
    own = work.tenancy.list_users(tenant_id=tenant.id)

    assert [len(first), len(second)] == [2, 2]
    assert {user.id for user in (*first, *second)} == users | {stranger.id}
    assert {user.id for user in own} == users


def test_every_scope_is_listed_once(work: UnitOfWork) -> None:
    """A tenant's whether it has users or not; a user's where there is no tenant."""
    empty, busy = factories.TenantFactory(), factories.TenantFactory()
    factories.UserFactory(tenant=busy)
    factories.UserFactory(tenant=busy)
    alone = factories.UserFactory()

    scopes = work.tenancy.list_scopes()

    expected = [Scope.tenant(empty.id), Scope.tenant(busy.id), Scope.user(alone.id)]
    assert scopes == sorted(expected, key=str)


def test_only_who_sees_all_lists_the_scopes(work: UnitOfWork) -> None:
    """A list with holes would leave tenants out of what is done for all."""
    factories.TenantFactory()

    as_application(work, "rag_admin")
    assert len(work.tenancy.list_scopes()) == 1
    as_application(work)
    with pytest.raises(NotPermitted, match="rag_admin"):
        work.tenancy.list_scopes()


def test_signing_in_shows_exactly_one_user(work: UnitOfWork) -> None:
    """Before it and beside it the application sees nobody."""
    user = factories.UserFactory(external_id="ann")
    factories.UserFactory(external_id="bob")
    everybody = select(func.count()).select_from(User)
    as_application(work)

    before = work.session.scalar(everybody)
    signed_in = work.tenancy.sign_in("test", "ann")

    assert (before, work.session.scalar(everybody)) == (0, 1)
    assert signed_in is not None
    assert signed_in.id == user.id
    assert work.tenancy.sign_in("test", "eve") is None
    assert work.session.scalar(everybody) == 0


def test_who_signs_in_first_is_added_by_the_application(work: UnitOfWork) -> None:
    """Under that identity and no other."""
    as_application(work)

    assert work.tenancy.sign_in("test", "new") is None
    user = work.tenancy.create_user(auth_provider="test", external_id="new")

    assert work.tenancy.sign_in("test", "new") is user
    with pytest.raises(NotPermitted, match="'test:another' is not signed in"):
        work.tenancy.create_user(auth_provider="test", external_id="another")


def test_a_sign_in_ends_with_its_transaction(database: Database) -> None:
    """Whoever gets the connection next is nobody."""
    with database.unit_of_work() as work:
        work.tenancy.create_user(auth_provider="test", external_id="ann")
        work.commit()
    with database.unit_of_work() as work:
        as_application(work)
        assert work.tenancy.sign_in("test", "ann") is not None
        work.commit()
        as_application(work)
        assert work.tenancy.find_identity("test", "ann") is None


def test_two_identities_are_never_written_alike(work: UnitOfWork) -> None:
    """A colon would make a:b of the provider a, and b of the provider a:b, the same."""
    with pytest.raises(InvalidValue, match="colon"):
        work.tenancy.sign_in("a:b", "c")
    with pytest.raises(InvalidValue, match="colon"):
        work.tenancy.create_user(auth_provider="a:b", external_id="c")


def test_erasing_a_user_leaves_nothing_of_theirs(work: UnitOfWork) -> None:
    """Memories, vectors and jobs go; those of others stay."""
    mine, other = (
        factories.MemoryEmbeddingFactory(
            node=factories.MemoryNodeFactory(user=factories.UserFactory())
        )
        for _ in range(2)
    )
    owner = Scope.parse(mine.scope).user_id
    assert owner is not None
    of_a_scope = select(Job.scope).where(Job.scope.is_not(None))

    work.tenancy.delete_user(owner)

    for each, left in ((mine, []), (other, [other.node_key])):
        with factories.in_scope(work.session, each.scope):
            assert work.session.scalars(select(MemoryNode.key)).all() == left
            assert work.session.scalars(select(MemoryEmbedding.node_key)).all() == left
    assert work.session.scalars(of_a_scope).all() == [other.scope]


def test_erasing_a_tenant_takes_its_users_along(work: UnitOfWork) -> None:
    """Another tenant is not touched."""
    gone, stays = (factories.TenantFactory(), factories.TenantFactory())
    for tenant in (gone, stays):
        factories.UserFactory(tenant=tenant)
        factories.MemoryNodeFactory(tenant=tenant)

    work.tenancy.delete_tenant(gone.id)

    assert work.session.scalars(select(User.tenant_id)).all() == [stays.id]
    for tenant, left in ((gone, []), (stays, [stays.id])):
        with factories.in_scope(work.session, Scope.tenant(tenant.id)):
            assert work.session.scalars(select(MemoryNode.tenant_id)).all() == left


def test_erasing_a_tenant_takes_its_documents_along(work: UnitOfWork) -> None:
    """Chunks, vectors, clicks, searches, jobs and imports; what all may read stays, and others'."""
    gone, stays = (factories.TenantFactory(), factories.TenantFactory())
    shared = document_of(None, "everybody's")
    factories.ChunkBoostFactory(ranking=factories.LearnedRankingFactory(), chunk=shared)
    for tenant in (gone, stays):
        for chunk in (shared, document_of(tenant, tenant.slug)):
            factories.ClickFeedbackFactory(tenant=tenant, chunk=chunk)
        factories.SearchSessionFactory(tenant=tenant)
        ranking = factories.LearnedRankingFactory(tenant=tenant)
        factories.ChunkBoostFactory(tenant=tenant, ranking=ranking, chunk=shared)
        run = factories.ImportRunFactory(corpus="documentation", scope=f"tenant:{tenant.id}")
        factories.ImportFileFactory(run=run, scope=f"tenant:{tenant.id}")
    tables = {*DOCUMENTED, *UNSCOPED} - {"import_transformations", "import_rejects"}

    work.tenancy.delete_tenant(gone.id)

    for scope in (f"tenant:{gone.id}", f"tenant:{stays.id}", "shared"):
        with factories.in_scope(work.session, scope):
            left = {
                table
                for table in tables
                if work.session.scalar(
                    text(f"SELECT count(*) FROM {table} WHERE scope = :scope"),  # noqa: S608 - of ours
                    {"scope": scope},
                )
            }
        assert left == {str(gone.id): set(), str(stays.id): tables}.get(scope[7:], READABLE)


def test_the_statements_for_elsewhere_add_the_same_rows(work: UnitOfWork) -> None:
    """Quoted, whatever a name holds."""
    tenant = Tenant(id=uuid4(), name=ODD, slug="odd", settings={})
    user = User(
        id=uuid4(), tenant_id=tenant.id, auth_provider="local", external_id=ODD, display_name=ODD
    )
    run = work.session.connection().connection.driver_connection
    assert run is not None

    run.execute(tenant_sql(tenant))
    run.execute(user_sql(user))

    assert work.tenancy.get_tenant(tenant.id).name == ODD
    stored = work.tenancy.get_user(user.id)
    assert (stored.tenant_id, stored.display_name) == (tenant.id, ODD)


@pytest.mark.parametrize(("slug", "added"), [("acme", True), ("nobody", False), ("'{x}", False)])
def test_a_user_of_a_slug_is_added_where_there_is_such_a_tenant(
    work: UnitOfWork, slug: str, added: bool
) -> None:
    """Never as somebody on their own."""
    tenant = factories.TenantFactory(slug="acme")
    user = User(id=uuid4(), auth_provider="local", external_id="ann")
    run = work.session.connection().connection.driver_connection
    assert run is not None

    run.execute(user_sql(user, tenant_slug=slug))

    found: UUID | None = work.session.scalar(select(User.tenant_id).where(User.id == user.id))
    assert found == (tenant.id if added else None)
    assert len(work.tenancy.list_users()) == added
