"""pgcorpus roles: logins, and the rights of their groups."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from pgcorpus.db.choices import GROUPS, Group
from pgcorpus.services.cli.output import AsJson, out, print_json, put, say, table, warn

if TYPE_CHECKING:
    from pgcorpus.db.repositories.operations.roles import Rights


app = typer.Typer(
    help=(
        "Logins for applications and people, and who may do what.\n\n"
        "The upgrade of the schema makes three groups: rag_read_only searches, rag_read_write also "
        "writes, rag_admin also maintains. A login is made for each program and put into one."
    ),
    no_args_is_help=True,
)

PASSWORD_VARIABLE: Final = "PGCORPUS_NEW_PASSWORD"  # noqa: S105 - the variable's name
PASSWORD_BYTES: Final = 24
"""Random bytes of a generated password: 192 bits, 32 characters."""

LETTERS: Final = {
    "SELECT": "S",
    "INSERT": "I",
    "UPDATE": "U",
    "DELETE": "D",
    "TRUNCATE": "T",
    "REFERENCES": "R",
    "TRIGGER": "G",
    "MAINTAIN": "M",
    "USAGE": "A",
    "EXECUTE": "X",
}

Name = Annotated[str, typer.Argument(metavar="NAME", help="The login's exact name: case matters.")]


@app.command("create-user")
def create_user(
    name: Name,
    role: Annotated[Group, typer.Option("--role", help="The group: what the login may do.")],
    generate: Annotated[
        bool, typer.Option("--generate", help="Make a random password, and print it this once.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a login in one of the groups.

    The password is asked for twice, or is that of the environment variable PGCORPUS_NEW_PASSWORD,
    or is made with --generate: then it is all there is on stdout. It is hashed here (SCRAM), so
    that the server and its log never see it.

    Needs a superuser, or a role with CREATEROLE and ADMIN OPTION on the group.

    Example: pgcorpus roles create-user shop --role rag_read_write --generate
    """
    from pgcorpus.db.engine import Database

    if generate and PASSWORD_VARIABLE in os.environ:
        raise typer.BadParameter(
            f"{PASSWORD_VARIABLE} is set, too; unset it", param_hint="--generate"
        )
    password = secrets.token_urlsafe(PASSWORD_BYTES) if generate else _password()
    with Database.from_env().unit_of_work() as work:
        work.roles.create_login(name, role, password)
        work.commit()
    if as_json:
        print_json({"name": name, "role": role, "password": password if generate else None})
    else:
        say(f"{name} can log in, and is in {role}; let the program's DATABASE_URL name it")
        if generate:
            put(password)


@app.command("drop-user")
def drop_user(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop a login of the groups; refused, with what needs it, while something does.

    What it wrote stays. Connections that it has open are not ended.
    """
    from pgcorpus.db.engine import Database

    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is no terminal to ask; give --yes", param_hint="--yes")
        typer.confirm(f"Drop the login {name}?", abort=True, err=True)
    with Database.from_env().unit_of_work() as work:
        work.roles.drop_login(name)
        work.commit()
    if as_json:
        print_json({"name": name, "dropped": True})
    else:
        say(f"{name} dropped")


@app.command("show")
def show(as_json: AsJson = False) -> None:
    """Show who is in the groups, and what these may do with each table, view and function.

    S select, I insert, U update, D delete, T truncate, R references, G trigger, M maintain,
    A usage, X execute. Rights of all roles are under public. Warnings tell which role can do
    more than its group may.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.db.repositories.operations.roles import PUBLIC

    with Database.from_env().unit_of_work() as work:
        rights = work.roles.list_rights()
        members = work.roles.list_members()
    warnings = [f"{each.name} {danger}" for each in members for danger in each.dangers]
    warnings += [
        f"every role may {', '.join(each.of[PUBLIC])} {each.kind} {each.name}"
        for each in rights
        if each.kind != "function" and each.of[PUBLIC]
    ]
    if as_json:
        print_json(
            {
                "rights": [
                    {"kind": r.kind, "name": r.name, "row_security": r.row_security, "of": r.of}
                    for r in rights
                ],
                "members": [
                    {k: v for k, v in each._asdict().items() if k != "others"}
                    for each in members
                    if each.name not in GROUPS
                ],
                "warnings": warnings,
            }
        )
        return
    _show_rights(rights)
    table(
        "Members",
        ["role", "in", "can log in"],
        [
            (each.name, ", ".join(each.groups), "yes" if each.can_log_in else "no")
            for each in members
            if each.name not in GROUPS
        ],
    )
    for warning in warnings:
        warn(warning)


def _password() -> str:
    """Read the password from the environment, else from a prompt."""
    if PASSWORD_VARIABLE in os.environ:
        return os.environ[PASSWORD_VARIABLE]
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            f"there is no terminal to ask for a password; set {PASSWORD_VARIABLE}, or give "
            "--generate",
            param_hint="--generate",
        )
    password: str = typer.prompt(
        "Password of the new login", hide_input=True, confirmation_prompt=True, err=True
    )
    return password


def _show_rights(rights: Sequence[Rights]) -> None:
    """Print a grid for each kind of object.

    Long names are folded: one that is cut names nothing.
    """
    from pgcorpus.db.repositories.operations.roles import PUBLIC

    say(", ".join(f"{letter} {privilege.lower()}" for privilege, letter in LETTERS.items()))
    say("*: policies decide which of its rows")
    for kind, of_kind in groupby(rights, key=lambda each: each.kind):
        grid = Table(header_style="bold")
        grid.add_column(kind, overflow="fold")
        for role in (*GROUPS, PUBLIC):
            grid.add_column(role, no_wrap=True)
        for each in of_kind:
            letters = ("".join(LETTERS[p] for p in each.of[role]) for role in (*GROUPS, PUBLIC))
            grid.add_row(Text(each.name + (" *" if each.row_security else "")), *letters)
        out.print(grid)
