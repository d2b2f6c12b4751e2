"""Stub."""

from sqlalchemy.orm import Session


class KnowledgeRepository:
    """Stub."""

    def __init__(self, session: Session) -> None:
        self.session = session
