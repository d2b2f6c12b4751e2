"""Stub."""

from sqlalchemy.orm import Session


class SearchRepository:
    """Stub."""

    def __init__(self, session: Session) -> None:
        self.session = session
