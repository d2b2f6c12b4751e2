"""The tokens that embedding takes of each scope and day, and the ceilings over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert

from pgcorpus.db.base import SHARED
from pgcorpus.db.choices import LEAST_CEILING, MOST_TOKENS
from pgcorpus.db.errors import InvalidValue
from pgcorpus.db.models.usage import EVERY_SCOPE, TokenCeiling
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.scope import Scope

TODAY: Final = "(statement_timestamp() AT TIME ZONE 'UTC')::date"
"""The day that tokens are counted for, by the clock of the database."""

CEILING: Final = f"""coalesce(
    (SELECT tokens_per_day FROM token_ceilings AS own WHERE own.scope = usage.scope),
    (SELECT tokens_per_day FROM token_ceilings AS every WHERE every.scope = '{EVERY_SCOPE}'))"""  # noqa: S608 - constants of ours
"""The ceiling of a row of ``embedding_usage AS usage``."""

IS_FULL: Final = f"full_at >= {CEILING}"
"""The condition that no job of a row of ``embedding_usage AS usage`` is begun any more. A ceiling
that is raised opens the scope again, without another write."""

KEPT_DAYS: Final = 400
"""The days for which the tokens of each scope are kept: a year can be compared with the last."""

CEILINGS: Final = text(f"""
    SELECT scope, coalesce(tokens_per_day, (
               SELECT tokens_per_day FROM token_ceilings AS every
               WHERE every.scope = '{EVERY_SCOPE}')) AS ceiling
    FROM unnest(CAST(:scopes AS text[])) AS asked (scope)
    LEFT JOIN token_ceilings USING (scope) ORDER BY scope COLLATE "C"
""")  # noqa: S608 - constants of ours

TODAYS: Final = text(f"""
    INSERT INTO embedding_usage (scope, day) VALUES (:scope, {TODAY})
    ON CONFLICT (scope, day) DO UPDATE SET day = excluded.day
    RETURNING day, reserved_tokens, spent_tokens
""")  # noqa: S608 - constants of ours
"""The row of today, locked until the transaction ends."""

RESERVE: Final = text("""
    UPDATE embedding_usage
    SET reserved_tokens = reserved_tokens + :tokens, full_at = coalesce(:full_at, full_at)
    WHERE scope = :scope AND day = :day
""")

SETTLE: Final = text(f"""
    INSERT INTO embedding_usage AS usage (scope, day, spent_tokens)
    VALUES (:scope, coalesce(CAST(:day AS date), {TODAY}), :spent)
    ON CONFLICT (scope, day) DO UPDATE SET
        spent_tokens = usage.spent_tokens + excluded.spent_tokens,
        reserved_tokens = greatest(usage.reserved_tokens - :reserved, 0)
""")  # noqa: S608 - constants of ours

MAY_READ: Final = text("""
    SELECT has_table_privilege('embedding_usage', 'SELECT')
        AND has_table_privilege('token_ceilings', 'SELECT')
""")

HAS_CEILING: Final = text("SELECT scope_has_ceiling()")

MAY_SETTLE: Final = text("""
    SELECT has_table_privilege('embedding_usage', 'UPDATE')
        AND (NOT row_security_active('embedding_usage') OR pg_has_role('rag_admin', 'USAGE')
             OR (SELECT pg_has_role(relowner, 'USAGE') FROM pg_class
                 WHERE oid = 'embedding_usage'::regclass))
""")

LISTED: Final = text(f"""
    SELECT usage.scope, usage.spent_tokens, usage.reserved_tokens, {CEILING} AS ceiling,
           coalesce({IS_FULL}, false) AS is_full
    FROM embedding_usage AS usage WHERE day = {TODAY} AND usage.scope <> '{SHARED}'
    ORDER BY is_full DESC, spent_tokens DESC, usage.scope LIMIT :limit
""")  # noqa: S608 - constants of ours

FIGURES: Final = text(f"""
    SELECT coalesce(sum(spent_tokens), 0)::bigint AS spent_tokens,
           coalesce(sum(reserved_tokens), 0)::bigint AS reserved_tokens,
           count(*) FILTER (WHERE {IS_FULL}) AS full_scopes
    FROM embedding_usage AS usage WHERE day = {TODAY}
""")  # noqa: S608 - constants of ours

PURGE: Final = text(f"""
    DELETE FROM embedding_usage WHERE day < {TODAY} - CAST(:days AS integer)
""")  # noqa: S608 - constants of ours

Verdict = Literal["granted", "waits", "full"]
"""The answer to a text: its tokens are reserved; or they may fit when the calls under way have told
how much they took; or they do not fit today."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """The tokens that a scope may take for some texts.

    Attributes:
        verdicts: Of each text. The first that is not granted ends what is granted.
        day: The day that they were reserved for, or None where the scope has no ceiling.
        reserved_tokens: Tokens that were reserved.
    """

    verdicts: Sequence[Verdict]
    day: date | None = None
    reserved_tokens: int = 0

    @property
    def granted(self) -> int:
        """The number of the texts that may be embedded: the first ones."""
        return sum(verdict == "granted" for verdict in self.verdicts)


@dataclass(frozen=True, slots=True)
class ScopeUsage:
    """The tokens of a scope today.

    Attributes:
        scope: The scope as the database writes it.
        spent_tokens: Tokens that were spent.
        reserved_tokens: Bound of the calls under way.
        ceiling: The most that it may take, or None.
        is_full: Whether it waits for the next day.
    """

    scope: str
    spent_tokens: int
    reserved_tokens: int
    ceiling: int | None
    is_full: bool


@dataclass(frozen=True, slots=True)
class UsageFigures:
    """The tokens of all scopes today.

    Attributes:
        spent_tokens: Tokens that were spent, those of shared texts included.
        reserved_tokens: Bound of the calls under way.
        full_scopes: Scopes that wait for the next day.
    """

    spent_tokens: int
    reserved_tokens: int
    full_scopes: int


class UsageRepository(Repository):
    """Ceilings, and what was reserved and spent of them. Days are those of the database, in UTC."""

    def set_ceiling(self, tokens_per_day: int | None, scope: Scope | None = None) -> None:
        """Set or remove a ceiling. It holds from the next call on.

        Args:
            tokens_per_day: 0 embeds nothing; else 25,000 to 10^12. None removes the ceiling, and
                the one of every scope holds, if there is one.
            scope: For whom; None is every scope without a ceiling of its own.

        Raises:
            InvalidValue: The number is outside of its range.
        """
        name = EVERY_SCOPE if scope is None else str(scope)
        if tokens_per_day is None:
            self.session.execute(delete(TokenCeiling).where(TokenCeiling.scope == name))
            return
        if tokens_per_day and not LEAST_CEILING <= tokens_per_day <= MOST_TOKENS:
            raise InvalidValue(
                f"a ceiling of {tokens_per_day} tokens a day is out of range: it is 0, which "
                f"embeds nothing, or {LEAST_CEILING} to {MOST_TOKENS}"
            )
        new = insert(TokenCeiling).values(scope=name, tokens_per_day=tokens_per_day)
        self.session.execute(
            new.on_conflict_do_update(
                index_elements=[TokenCeiling.scope],
                set_={"tokens_per_day": new.excluded.tokens_per_day},
            )
        )

    def list_ceilings(self) -> dict[str, int]:
        """Return the ceilings by scope; that of ``default`` holds for every other scope."""
        rows = self.session.execute(
            select(TokenCeiling.scope, TokenCeiling.tokens_per_day).order_by(TokenCeiling.scope)
        )
        return {row.scope: row.tokens_per_day for row in rows}

    def find_ceilings(self, scopes: Sequence[Scope]) -> dict[Scope, int]:
        """Return the ceilings of those of the scopes that have one, in the order of their names."""
        by_name = {str(scope): scope for scope in scopes}
        found = self.session.execute(CEILINGS, {"scopes": list(by_name)})
        return {by_name[row.scope]: row.ceiling for row in found if row.ceiling is not None}

    def is_limited(self) -> bool:
        """Return whether a ceiling holds for the scope of the unit of work."""
        return self.scope is not None and bool(self.session.scalar(HAS_CEILING))

    def may_read(self) -> bool:
        """Return whether the login may read usage and ceilings: administrators and the owner."""
        return bool(self.session.scalar(MAY_READ))

    def reserve(self, bounds: Mapping[Scope, Sequence[int]]) -> dict[Scope, Allowance]:
        """Reserve tokens for the texts of scopes, as many of the first as fit; commit at once.

        What is spent and reserved never passes the ceiling: the row of a scope is locked from the
        look at it until the transaction ends, however many workers ask.

        Args:
            bounds: Scope → the most tokens that each of its texts may take.

        Returns:
            Scope → what it may take. Each that has a day is to be settled, whatever becomes of the
            call; until then, and where its process dies, the reserved tokens count as spent.
        """
        ceilings = self.find_ceilings(list(bounds))
        allowances = {
            scope: Allowance(["granted"] * len(of_texts))
            for scope, of_texts in bounds.items()
            if scope not in ceilings
        }
        for scope, ceiling in ceilings.items():  # in one order, or two workers could deadlock
            row = self.session.execute(TODAYS, {"scope": str(scope)}).one()
            allowance = _allow(
                bounds[scope],
                left=ceiling - row.spent_tokens - row.reserved_tokens,
                unspent=ceiling - row.spent_tokens,
                day=row.day,
            )
            is_full = "full" in allowance.verdicts
            self.session.execute(
                RESERVE,
                {
                    "scope": str(scope),
                    "day": row.day,
                    "tokens": allowance.reserved_tokens,
                    "full_at": ceiling if is_full else None,
                },
            )
            allowances[scope] = allowance
        return allowances

    def settle(
        self, spent: Mapping[Scope | None, int], allowances: Mapping[Scope, Allowance]
    ) -> None:
        """Count what calls have spent, and give back what was reserved for them.

        Args:
            spent: Scope → tokens; None is what is everybody's.
            allowances: Scope → what was reserved for it.
        """
        if not self.session.scalar(MAY_SETTLE):
            return
        for scope in sorted(spent, key=lambda each: SHARED if each is None else str(each)):
            allowance = None if scope is None else allowances.get(scope)
            reserved = 0 if allowance is None else allowance.reserved_tokens
            if not (spent[scope] or reserved):
                continue
            self.session.execute(
                SETTLE,
                {
                    "scope": SHARED if scope is None else str(scope),
                    "day": None if allowance is None else allowance.day,
                    "spent": spent[scope],
                    "reserved": reserved,
                },
            )

    def list_today(self, *, limit: int = 20) -> list[ScopeUsage]:
        """List what scopes spent today: first those that wait for tomorrow, then the largest.

        Args:
            limit: At most this many.
        """
        if not self.may_read():
            return []
        rows = self.session.execute(LISTED, {"limit": limit}).mappings()
        return [ScopeUsage(**row) for row in rows]

    def get_figures(self) -> UsageFigures:
        """Sum up the tokens of today; all are 0 for a login that may not read them."""
        if not self.may_read():
            return UsageFigures(0, 0, 0)
        return UsageFigures(**self.session.execute(FIGURES).mappings().one())

    def purge(self) -> None:
        """Delete the rows of more than 400 days ago."""
        self.session.execute(PURGE, {"days": KEPT_DAYS})


def _allow(bounds: Sequence[int], *, left: int, unspent: int, day: date) -> Allowance:
    """Decide which texts fit: all before the first that does not."""
    reserved = 0
    for number, bound in enumerate(bounds):
        if reserved + bound > left:
            rest: Verdict = "full" if bound > unspent else "waits"
            fits: list[Verdict] = ["granted"] * number
            return Allowance([*fits, *[rest] * (len(bounds) - number)], day, reserved)
        reserved += bound
    return Allowance(["granted"] * len(bounds), day, reserved)
