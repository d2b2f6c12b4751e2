"""The registry of embedding models, and which of them each corpus uses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Double,
    case,
    cast,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from pgcorpus.db.base import lock_key
from pgcorpus.db.choices import IndexKind
from pgcorpus.db.errors import (
    AlreadyExists,
    NotFound,
    TransactionConflict,
    UnknownModel,
)
from pgcorpus.db.models.embeddings import CorpusSetting, EmbeddingModel
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.search.corpus import Corpus

SPREAD_SAMPLE: Final = 64
"""Vectors that are compared with each other to measure a spread: 2,016 pairs, good to 3 %."""

LEAST_SPREAD: Final = 0.01
"""The least spread: of vectors that are all alike nothing finer can be measured."""


class ModelRepository(Repository):
    """Models, and their use by corpora."""

    def list_models(self) -> Sequence[EmbeddingModel]:
        """List the registered models, by name."""
        return self.session.scalars(select(EmbeddingModel).order_by(EmbeddingModel.name)).all()

    def find_model(self, name: str) -> EmbeddingModel | None:
        """Return the model of that name, or None."""
        return self.session.get(EmbeddingModel, name)

    def get_model(self, name: str) -> EmbeddingModel:
        """Return the model of that name.

        Raises:
            UnknownModel: It is not registered; the message lists those that are.
        """
        model = self.find_model(name)
        if model is None:
            known = ", ".join(model.name for model in self.list_models())
            raise UnknownModel(
                f"there is no model {name!r}; known: {known}. Add one with: "
                "pgcorpus models add NAME --dimensions N --provider PROVIDER"
            )
        return model

    def add_model(
        self,
        name: str,
        *,
        dimensions: int,
        provider: str,
        index_kind: IndexKind = "halfvec",
        languages: Sequence[str] | None = None,
    ) -> EmbeddingModel:
        """Register a model. Its indexes are ``build_index``'s: they need no transaction.

        Raises:
            AlreadyExists: The name is taken.
            InvalidValue: The index cannot hold so many dimensions.
        """
        if self.find_model(name) is not None:
            raise AlreadyExists(f"there is a model {name!r} already; see: pgcorpus models list")
        model = EmbeddingModel(
            name=name,
            dimensions=dimensions,
            provider=provider,
            index_kind=index_kind,
            languages=None if languages is None else list(languages),
        )
        self.session.add(model)
        self.session.flush()
        return model

    def delete_model(self, name: str) -> None:
        """Delete a model without vectors from the registry.

        Raises:
            MissingReference: It has vectors, or a corpus uses it.
        """
        self.session.execute(delete(EmbeddingModel).where(EmbeddingModel.name == name))

    def alone_with(self, name: str) -> AbstractContextManager[None]:
        """Keep others from indexing, dropping or using the model; see ``lock_connection``."""
        return self.lock_connection(_lock_of(name), _being_changed(name))

    def keep_model(self, name: str) -> None:
        """Keep other sessions from indexing or dropping the model until the transaction ends.

        Raises:
            TransactionConflict: Another process does just now.
        """
        if not self.session.scalar(select(func.pg_try_advisory_xact_lock_shared(_lock_of(name)))):
            raise TransactionConflict(_being_changed(name))

    def find_active_model(self, corpus: str) -> EmbeddingModel | None:
        """Return the model that searches of the corpus use, or None where none is set."""
        chosen = self.session.get(CorpusSetting, corpus)
        return None if chosen is None else self.get_model(chosen.active_model)

    def find_previous_model(self, corpus: str) -> str | None:
        """Return the model that searches of the corpus used before, or None."""
        chosen = self.session.get(CorpusSetting, corpus)
        return None if chosen is None else chosen.previous_model

    def lock_setting(self, corpus: str) -> None:
        """Keep other sessions from switching the corpus until the transaction ends.

        Wait for one that does.
        """
        setting = select(CorpusSetting).where(CorpusSetting.corpus == corpus).with_for_update()
        self.session.execute(setting.execution_options(populate_existing=True))

    def use_model(self, corpus: str, name: str) -> None:
        """Make searches of the corpus use the model, from the next one on.

        The model before is kept for ``roll_back``; using a model twice does not forget it.

        Raises:
            UnknownModel: It is not registered.
            TransactionConflict: It is being indexed or dropped.
        """
        self.keep_model(name)
        self.get_model(name)
        self.lock_setting(corpus)
        active = self.find_active_model(corpus)
        chosen = insert(CorpusSetting).values(corpus=corpus, active_model=name)
        self.session.execute(
            chosen.on_conflict_do_update(
                index_elements=[CorpusSetting.corpus],
                set_={
                    "active_model": name,
                    "previous_model": case(
                        (CorpusSetting.active_model == name, CorpusSetting.previous_model),
                        else_=CorpusSetting.active_model,
                    ),
                },
            )
        )
        if active is not None and active.name != name:
            # The clock, not now(): counting the coverage may have taken a while.
            self.session.execute(
                update(EmbeddingModel)
                .where(EmbeddingModel.name == active.name)
                .values(retired_at=func.clock_timestamp())
            )
        self.session.expire_all()

    def roll_back(self, corpus: str) -> str:
        """Make searches of the corpus use the model before; a second call undoes the first.

        Returns:
            The model's name.

        Raises:
            NotFound: There was none, or it was dropped.
            TransactionConflict: It is being indexed or dropped.
        """
        self.lock_setting(corpus)
        previous = self.find_previous_model(corpus)
        if previous is None:
            raise NotFound(
                f"{corpus} has no earlier model to go back to; choose one with: "
                f"pgcorpus models use {corpus} NAME"
            )
        self.use_model(corpus, previous)
        return previous

    def forget_previous(self, name: str) -> None:
        """Keep every corpus from going back to the model."""
        self.session.execute(
            update(CorpusSetting)
            .where(CorpusSetting.previous_model == name)
            .values(previous_model=None)
        )

    def seconds_retired(self, name: str) -> float | None:
        """Return the seconds since a corpus changed from the model to another; None: never."""
        age = func.extract("epoch", func.clock_timestamp() - EmbeddingModel.retired_at)
        found: float | None = self.session.scalar(
            select(cast(age, Double)).where(EmbeddingModel.name == name)
        )
        return found

    def measure_spread(self, corpus: Corpus, model_name: str) -> bool:
        """Measure how far the cosines of a model spread, unless it is known or they are too few.

        A role that may store vectors need not be one that may write to the registry: what it stores
        is measured by the next maintenance.

        Returns:
            Whether it is known now.
        """
        if self.get_model(model_name).cosine_spread is not None:
            return True
        may = func.has_table_privilege(EmbeddingModel.__tablename__, "UPDATE")
        if not self.session.scalar(select(may)):
            return False
        sample = (
            select(corpus.vectors.c.embedding, corpus.item.label("item"))
            .where(
                corpus.vectors.c.model_name == model_name,
                *self.in_scope(corpus, corpus.vectors),
            )
            .order_by(*corpus.items)
            .limit(SPREAD_SAMPLE)
            .cte("sample")
        )
        one, other = sample.alias("one"), sample.alias("other")
        cosine = cast(one.c.embedding.op("<=>")(other.c.embedding), Double)
        spread = select(func.stddev_pop(cosine)).join_from(one, other, one.c.item < other.c.item)
        enough = select(func.count() == SPREAD_SAMPLE).select_from(sample).scalar_subquery()
        self.session.execute(
            update(EmbeddingModel)
            .where(
                EmbeddingModel.name == model_name, EmbeddingModel.cosine_spread.is_(None), enough
            )
            .values(cosine_spread=func.greatest(spread.scalar_subquery(), LEAST_SPREAD))
        )
        self.session.expire_all()
        return self.get_model(model_name).cosine_spread is not None

    def measure_spreads(self, corpus: Corpus) -> None:
        """Measure the spread of every model that has vectors in the corpus; see above."""
        for name in [model.name for model in self.list_models()]:
            self.measure_spread(corpus, name)


def _lock_of(model_name: str) -> ColumnElement[int]:
    """Return the key of the advisory lock of a model."""
    return lock_key(f"changing the model {model_name}")


def _being_changed(model_name: str) -> str:
    return f"another process is indexing or dropping {model_name}; wait until it has ended"
