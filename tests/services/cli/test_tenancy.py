"""pgcorpus tenants and pgcorpus users, as a person and as a script use them."""

from __future__ import annotations

import json

import pytest

from pgcorpus.db.engine import Database
from tests.command import Command
from tests.logins import logged_in

NOBODY = "11111111-1111-1111-1111-111111111111"


def test_a_tenant_and_its_users_are_made_and_listed(pgcorpus: Command) -> None:
    """A user is put into a tenant by slug or by key; each command names the next."""
    tenant = pgcorpus("tenants", "create", "Driscoll & Söhne", "--json")
    made = json.loads(tenant.stdout)
    by_slug = pgcorpus("users", "create", "--email", "a@x.org", "--tenant", "driscoll-sohne")
    by_key = pgcorpus("users", "create", "--email", "b@x.org", "--tenant", made["id"])
    alone = pgcorpus("users", "create", "--email", "c@x.org", "--json")
    of_tenant = pgcorpus("users", "list", "--tenant", made["slug"], "--json")
    everybody = pgcorpus("users", "list", "--limit", "2")

    assert made["slug"] == "driscoll-sohne"
    assert f"pgcorpus import memory DIR --tenant-id {made['id']}" in by_slug.stderr
    assert (by_slug.stdout, by_key.returncode) == ("", 0)
    assert [user["email"] for user in json.loads(of_tenant.stdout)] == ["a@x.org", "b@x.org"]
    assert json.loads(alone.stdout)["tenant_id"] is None
    assert "there are more: pgcorpus users list --after" in everybody.stderr
    last = everybody.stderr.split()[-1]
    assert "c@x.org" in pgcorpus("users", "list", "--after", last).stdout
    assert "driscoll-sohne" in pgcorpus("tenants", "list").stdout


def test_who_is_listed_is_read_on_a_narrow_terminal(pgcorpus: Command) -> None:
    """A row each in 80 columns: the key to copy, the tenant's slug, and each name once."""
    pgcorpus("tenants", "create", "Driscoll", "--slug", "driscoll")
    known = ("--provider", "google", "--external-id", "g-1", "--display-name", "Ann")
    pgcorpus("users", "create", "--email", "a@x.org", "--tenant", "driscoll", *known)
    pgcorpus("users", "create", "--email", "b@x.org")

    shown = pgcorpus("users", "list", COLUMNS="80").stdout
    ann, bob = (line for line in shown.splitlines() if "@" in line)

    keys = [user["id"] for user in json.loads(pgcorpus("users", "list", "--json").stdout)]
    assert [each.split() for each in (ann, bob)] == [
        ["│", keys[0], "│", "driscoll", "│", "Ann,", "a@x.org,", "google:g-1", "│"],
        ["│", keys[1], "│", "│", "b@x.org", "│"],
    ]


def test_a_user_on_their_own_is_told_how_to_import(pgcorpus: Command) -> None:
    """The identity is the address unless another is given."""
    made = pgcorpus("users", "create", "--email", "a@x.org", "--provider", "azure")
    user = json.loads(pgcorpus("users", "list", "--json").stdout)[0]

    assert f"pgcorpus import memory DIR --user-id {user['id']}" in made.stderr
    assert (user["auth_provider"], user["external_id"]) == ("azure", "a@x.org")


def test_statements_can_be_printed_and_run_elsewhere(pgcorpus: Command, database: Database) -> None:
    """Nothing is written until they are run; then all is as if the command had done it."""
    name = "O'Brien \\ {x}"
    tenant = pgcorpus("tenants", "create", name, "--slug", "acme", "--sql")
    user = pgcorpus(
        *("users", "create", "--email", "o'b@x.org", "--tenant", "acme"),
        *("--id", NOBODY, "--display-name", name, "--sql"),
    )

    with database.unit_of_work() as work:
        assert list(work.tenancy.list_tenants()) == []
    with database.engine.begin() as connection:
        for printed in (tenant, user):
            connection.exec_driver_sql(printed.stdout)
    stored = json.loads(pgcorpus("users", "list", "--tenant", "acme", "--json").stdout)
    assert [(each["id"], each["display_name"]) for each in stored] == [(NOBODY, name)]
    assert json.loads(pgcorpus("tenants", "list", "--json").stdout)[0]["name"] == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["users", "create"], "--email or --external-id"),
        (["users", "create", "--email", "nobody"], "one @"),
        (["users", "create", "--email", "a@x.org", "--provider", "a:b"], "no colon"),
        (["users", "create", "--email", "a@x.org", "--id", "1"], "Invalid UUID format"),
        (["users", "create", "--email", "a@x.org", "--sql", "--json"], "one of the two"),
        (["users", "list", "--after", "ann"], "Invalid UUID format"),
        (["tenants", "create", " "], "blank"),
        (["tenants", "create", "東京"], "name one with --slug"),
        (["tenants", "create", "A", "--slug", "A b"], "lower-case"),
    ],
)
def test_wrong_use_is_told_before_a_database_is_asked(
    pgcorpus: Command, arguments: list[str], said: str
) -> None:
    """With exit code 2."""
    done = pgcorpus(*arguments)

    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["users", "create", "--email", "a@x.org", "--tenant", "nobody"], "pgcorpus tenants list"),
        (["users", "create", "--email", "a@x.org", "--tenant", NOBODY], "pgcorpus tenants list"),
        (["users", "list", "--after", NOBODY], "pgcorpus users list"),
        (["tenants", "create", "Again"], "a tenant with this slug already"),
    ],
)
def test_who_is_missing_or_taken_is_told_in_a_sentence(
    pgcorpus: Command, arguments: list[str], said: str
) -> None:
    """With exit code 1, and what to do about it."""
    pgcorpus("tenants", "create", "Again")

    done = pgcorpus(*arguments)

    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())


def test_who_is_no_administrator_makes_and_lists_nobody(
    pgcorpus: Command, database: Database
) -> None:
    """Row security would show a part of the list as if it were the whole."""
    with logged_in(database, "rag_read_write") as writer:
        address = writer.url.render_as_string(hide_password=False)
        for arguments in (
            ["tenants", "list"],
            ["users", "list"],
            ["tenants", "create", "A"],
            ["users", "create", "--email", "a@x.org"],
        ):
            done = pgcorpus(*arguments, DATABASE_URL=address)
            assert (done.returncode, done.stdout) == (1, "")
            assert "rag_admin" in done.stderr
