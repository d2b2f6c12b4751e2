"""Stub."""

from sqlalchemy.orm import Session


class ImportRepository:
    """Stub."""

    def __init__(self, session: Session) -> None:
        self.session = session
