"""Every model can be made, and the database agrees that it is valid."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from sqlalchemy.orm import Session

from pgcorpus.db.base import Base
from tests import factories


@pytest.mark.parametrize("factory", factories.ALL, ids=lambda factory: factory.__name__)
def test_a_factory_makes_a_row_that_the_database_accepts(
    factory: type[factories._Factory], session: Session
) -> None:
    """The row that a factory makes can be read back."""
    row = factory()
    key, scope = session.identity_key(instance=row)[1], getattr(row, "scope", None)
    session.expire_all()

    with (
        factories.in_scope(session, scope) if scope else nullcontext()
    ):  # a memory is read in its scope alone
        assert session.get(type(row), key) is row


def test_every_model_has_a_factory() -> None:
    """A new model without a factory is noticed."""
    made = {factory._meta.model for factory in factories.ALL}

    assert made == {mapper.class_ for mapper in Base.registry.mappers}
