"""The last writes of a service, which its next recalls must see."""

from __future__ import annotations

import threading
from typing import Final

from pgcorpus.db.scope import Scope

MOST_SCOPES: Final = 10_000
"""Scopes whose last write is kept; a standby in use has what was written before theirs."""


class LastWrites:
    """Keeps the token of the last commit in each scope, where searches read from standbys."""

    def __init__(self) -> None:
        self._tokens: dict[Scope, str] = {}
        self._lock = threading.Lock()

    def note(self, scope: Scope, token: str | None) -> None:
        """Note the token of a commit; None, where every search sees it, is none."""
        if token is None:
            return
        with self._lock:
            self._tokens.pop(scope, None)
            self._tokens[scope] = token
            if len(self._tokens) > MOST_SCOPES:
                del self._tokens[next(iter(self._tokens))]

    def get(self, scope: Scope) -> str | None:
        """Return the token of the last commit in a scope, if there was one."""
        return self._tokens.get(scope)
