"""Services sign users and tenants up without an administrator's rights, and get no others by it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import AlreadyExists, InvalidValue, NotPermitted
from pgcorpus.db.models import Tenant, User
from pgcorpus.db.repositories.tenancy import scope_of
from pgcorpus.db.scope import Scope
from pgcorpus.services.memory.service import MemoryService
from tests.logins import logged_in


@pytest.fixture
def service(database: Database) -> Iterator[Database]:
    """The login of a service, which row security binds."""
    with logged_in(database, "rag_read_write") as service:
        yield service


def sign_up(service: Database, external_id: str, **more: str | None) -> User:
    """Sign somebody up in a transaction of its own."""
    with service.unit_of_work() as work:
        user = work.tenancy.sign_up("example.org", external_id, **more)
        work.commit()
        return user


def list_tenants(superuser: Engine) -> list[tuple[str, str]]:
    """Return name and slug of all tenants."""
    with superuser.connect() as connection:
        rows = connection.execute(text("SELECT name, slug FROM tenants ORDER BY created_at"))
        return [(row.name, row.slug) for row in rows]


# What a service can do


def test_a_user_alone_is_signed_up_and_remembers(service: Database) -> None:
    """The README's way: sign in, else sign up."""
    ada = sign_up(service, "ada", email="ada@example.org", display_name="Ada")

    with service.unit_of_work() as work:
        known = work.tenancy.sign_in("example.org", "ada")
        assert known is not None
        assert (known.id, known.email, known.display_name) == (ada.id, "ada@example.org", "Ada")
    memory = MemoryService(service)
    memory.remember("I take no sugar.", scope=scope_of(ada), conversation_id="kitchen")
    assert memory.recall("sugar", scope=scope_of(ada)).memories[0].human == "I take no sugar."


def test_a_tenant_is_signed_up_with_its_first_user(service: Database, superuser: Engine) -> None:
    """The user is of the tenant, and a colleague is added in its scope."""
    ada = sign_up(service, "ada", tenant_name="Müller & Söhne GmbH")

    assert ada.tenant_id is not None
    scope = scope_of(ada)
    assert scope == Scope.tenant(ada.tenant_id, user_id=ada.id)
    with service.unit_of_work(scope) as work:
        tenant = work.tenancy.get_tenant(ada.tenant_id)
        bob = work.tenancy.create_user(
            auth_provider="example.org", external_id="bob", tenant_id=tenant.id
        )
        work.commit()
        assert bob.tenant_id == tenant.id
    ((name, slug),) = list_tenants(superuser)
    assert name == "Müller & Söhne GmbH"
    assert slug == f"m-ller-s-hne-gmbh-{ada.tenant_id.hex}"


@pytest.mark.parametrize("name", ["東京", "!!!", "-" * 200, "x" * 255])
def test_any_name_gives_a_slug(service: Database, superuser: Engine, name: str) -> None:
    """Without letters it is the key alone."""
    ada = sign_up(service, "ada", tenant_name=name)

    ((stored, slug),) = list_tenants(superuser)
    assert stored == name
    assert ada.tenant_id is not None
    assert slug.endswith(ada.tenant_id.hex)


def test_the_audit_log_names_the_login_and_the_actor(service: Database, superuser: Engine) -> None:
    """The owner, in whose name the function runs, is not who did it."""
    with service.unit_of_work(actor="front door") as work:
        ada = work.tenancy.sign_up("example.org", "ada", tenant_name="Acme")
        work.commit()

    with superuser.connect() as connection:
        entries = connection.execute(
            text("""
                SELECT table_name, action, user_name, actor, record_id FROM security_audit_log
                WHERE table_name IN ('tenants', 'users') ORDER BY position
            """)
        ).all()
    assert [tuple(each) for each in entries] == [
        ("tenants", "INSERT", service.url.username, "front door", str(ada.tenant_id)),
        ("users", "INSERT", service.url.username, "front door", str(ada.id)),
    ]


def test_the_scope_of_before_is_back_afterwards(service: Database) -> None:
    """The rest of the transaction is not of the new tenant."""
    ada = sign_up(service, "ada")
    with service.unit_of_work() as work:
        work.tenancy.sign_up("example.org", "eve", tenant_name="Evil")
        assert work.session.scalar(text("SELECT app_scope()")) is None
    with service.unit_of_work(scope_of(ada)) as work:
        work.tenancy.sign_up("example.org", "eve", tenant_name="Evil")
        assert work.session.scalar(text("SELECT app_scope()")) == f"user:{ada.id}"


def test_nothing_is_kept_without_a_commit_nor_after_an_error(
    service: Database, superuser: Engine
) -> None:
    """A tenant without a user would be nobody's."""
    with service.unit_of_work() as work:
        work.tenancy.sign_up("example.org", "ada", tenant_name="Acme")
    with pytest.raises(InvalidValue), service.unit_of_work() as work:
        work.tenancy.sign_up("example.org", "ada", email="no address", tenant_name="Acme")

    assert list_tenants(superuser) == []


def test_who_is_known_is_not_signed_up_again(service: Database, superuser: Engine) -> None:
    """Nor is a second tenant made for them, also where two come at once."""
    sign_up(service, "ada", tenant_name="Acme")
    with pytest.raises(AlreadyExists, match="sign them in"):
        sign_up(service, "ada", tenant_name="Acme")
    together = threading.Barrier(2)

    def come(_: int) -> bool:
        with service.unit_of_work() as work:
            assert work.tenancy.sign_in("example.org", "bob") is None
            together.wait(30)
        try:
            sign_up(service, "bob", tenant_name="Bobs")
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(come, range(2))) == [False, True]
    assert [name for name, _ in list_tenants(superuser)] == ["Acme", "Bobs"]


@pytest.mark.parametrize("name", ["", "  ", "\t", "x" * 256, "a\0b"])
def test_a_name_that_is_none_is_refused(service: Database, superuser: Engine, name: str) -> None:
    """In the words of the constraint."""
    with pytest.raises(InvalidValue):
        sign_up(service, "ada", tenant_name=name)
    assert list_tenants(superuser) == []


def test_a_colon_in_the_provider_is_refused(service: Database) -> None:
    """Two identities are never written alike."""
    with pytest.raises(InvalidValue, match="colon"), service.unit_of_work() as work:
        work.tenancy.sign_up("a:b", "c", tenant_name="Acme")


# What it cannot do


def test_who_is_not_signed_in_is_told_the_way(service: Database) -> None:
    """Not that a row violates a policy."""
    with (
        pytest.raises(NotPermitted, match=r"'example.org:ada' is not signed in; use .*sign_up"),
        service.unit_of_work() as work,
    ):
        work.tenancy.create_user(auth_provider="example.org", external_id="ada")


def test_another_tenants_user_is_added_in_its_scope_alone(service: Database) -> None:
    """A service that knows a key of a tenant has to say that it works for it."""
    ada = sign_up(service, "ada", tenant_name="Acme")

    def add(scope: Scope | None) -> None:
        with service.unit_of_work(scope) as work:
            work.tenancy.sign_in("example.org", "eve")
            work.tenancy.create_user(
                auth_provider="example.org", external_id="eve", tenant_id=ada.tenant_id
            )

    for scope in (None, Scope.user(ada.id)):
        with pytest.raises(NotPermitted, match=rf"Scope.tenant\('{ada.tenant_id}'\)"):
            add(scope)


def test_a_login_without_the_right_is_told_of_the_right(database: Database) -> None:
    """It reads, and signs nobody up."""
    with logged_in(database, "rag_read_only") as reader:
        with pytest.raises(NotPermitted, match="roles show"):
            sign_up(reader, "ada")
        with pytest.raises(NotPermitted, match="roles show"):
            sign_up(reader, "ada", tenant_name="Acme")


ATTACKS = {
    "a tenant with a slug of one's choice": (
        "INSERT INTO tenants (name, slug) VALUES ('Evil', 'acme')"
    ),
    "a tenant with a key of one's choice": (
        "INSERT INTO tenants (id, name, slug) VALUES (gen_random_uuid(), 'Evil', 'evil')"
    ),
    "settings of a tenant": 'UPDATE tenants SET settings = \'{"plan": "large"}\'',
    "another search_path": "ALTER FUNCTION sign_up_tenant(text) SET search_path = pg_temp",
    "another owner": "ALTER FUNCTION sign_up_tenant(text) OWNER TO CURRENT_USER",
    "another body": (
        "CREATE OR REPLACE FUNCTION sign_up_tenant(name text) RETURNS uuid LANGUAGE sql"
        " AS 'SELECT gen_random_uuid()'"
    ),
    "rights for all": "GRANT EXECUTE ON FUNCTION sign_up_tenant(text) TO PUBLIC",
    "the owner's role": "SET ROLE {owner}",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_service_makes_no_more_than_the_function_does(
    database: Database, service: Database, superuser: Engine, attack: str
) -> None:
    """Each statement is refused, or finds no row to change."""
    acme = sign_up(service, "ada", tenant_name="Acme")
    statement = ATTACKS[attack].replace("{owner}", f'"{database.url.username}"')

    changed = 0
    try:
        with service.engine.begin() as connection:
            changed = connection.execute(text(statement)).rowcount
    except DBAPIError as error:
        assert getattr(error.orig, "sqlstate", None) == "42501"  # noqa: PT017 - refusal is one way

    assert changed <= 0
    assert acme.tenant_id is not None
    assert [name for name, _ in list_tenants(superuser)] == ["Acme"]


def test_what_a_caller_shadows_changes_nothing(service: Database, superuser: Engine) -> None:
    """Its temporary table, functions and operators are never met in the owner's name."""
    with service.engine.begin() as connection:
        connection.execute(text("SET LOCAL search_path = pg_temp, public"))
        connection.execute(text("CREATE TEMPORARY TABLE tenants (LIKE public.tenants)"))
        connection.execute(
            text("""
                CREATE FUNCTION pg_temp.lower(text) RETURNS text LANGUAGE plpgsql AS $$
                BEGIN RAISE EXCEPTION 'as %', current_user; END $$
            """)
        )
        made: UUID = connection.scalar(text("SELECT public.sign_up_tenant('Acme')"))
        assert connection.scalar(text("SELECT count(*) FROM pg_temp.tenants")) == 0

    assert list_tenants(superuser) == [("Acme", f"acme-{made.hex}")]


def test_the_function_tells_nothing_of_other_tenants(service: Database) -> None:
    """A name that is taken is as good as any, and what was made is seen in its scope alone."""
    first, second = (sign_up(service, name, tenant_name="Acme") for name in ("ada", "bob"))

    assert first.tenant_id != second.tenant_id
    with service.unit_of_work() as work:
        third = work.session.scalar(text("SELECT sign_up_tenant('Acme')"))
        assert [each.id for each in work.session.scalars(select(Tenant))] == [third]
        assert work.session.scalars(select(User)).all() == []
    with service.unit_of_work(scope_of(first)) as work:
        assert [each.id for each in work.session.scalars(select(Tenant))] == [first.tenant_id]


def test_markup_and_quotes_in_a_name_are_a_name(service: Database, superuser: Engine) -> None:
    """It is data, in the function, too."""
    name = "Robert'); DROP TABLE tenants; --\\ {x} 100% $$"

    sign_up(service, "ada", tenant_name=name)

    assert [stored for stored, _ in list_tenants(superuser)] == [name]
