"""First loads: without the indexes that only searches use, which are built at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar, Final

from sqlalchemy import Table, text
from sqlalchemy.exc import OperationalError

from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.repositories.base import Repository
from pgcorpus.db.repositories.operations.diagnosis import DiagnosisRepository, NeededIndex
from pgcorpus.db.repositories.vector_indexes import build_memory_kb
from pgcorpus.db.search.corpus import Corpus

OWNED: Final = text("""
    SELECT bool_and(pg_has_role(relowner, 'USAGE')
                    AND has_schema_privilege(relnamespace, 'CREATE')) FROM pg_class
    WHERE oid = ANY (CAST(:tables AS regclass[]))
""")

LACK_STATISTICS: Final = text("""
    SELECT NOT bool_or(reltuples > 0) FROM pg_class WHERE oid = ANY (CAST(:tables AS regclass[]))
""")

SIZE_OF_VECTORS: Final = text("""
    SELECT max(pg_table_size(filled)) FROM unnest(CAST(:tables AS regclass[])) AS filled
""")


class FirstLoad(Repository):
    """A repository that an import fills, with or without the indexes of searches.

    Attributes:
        corpora: Whose searches need the indexes.
        tables: Those that are filled.
    """

    corpora: ClassVar[Sequence[Corpus]]
    tables: ClassVar[Sequence[Table]]

    def is_first(self) -> bool:
        """Return whether no scope has a row yet."""
        return self.are_empty(*self.tables)

    def owns_tables(self) -> bool:
        """Return whether the role may drop and build the indexes."""
        with self.as_login():
            names = [each.name for each in self.tables]
            return bool(self.session.scalar(OWNED, {"tables": names}))

    def lacks_statistics(self) -> bool:
        """Return whether the planner knows of no row, since none was counted yet."""
        names = [each.name for each in self.tables]
        return bool(self.session.scalar(LACK_STATISTICS, {"tables": names}))

    def leaves_indexes_out(self, models: Collection[EmbeddingModel] = ()) -> bool:
        """Return whether a load leaves out the indexes and builds them.

        The first load does, and one after a first load that was stopped.

        Only who owns the tables can do so, and may make anything in their schema.

        Args:
            models: Whose vectors are coming.
        """
        with self.as_login():
            if not self.owns_tables():
                return False
            return self.is_first() or bool(self.list_unbuilt(models))

    def drop_search_indexes(self, models: Collection[EmbeddingModel] = ()) -> None:
        """Drop the indexes that only searches need, before a first load.

        Searches find the same without them, later. Where there is a row, or the tables are in use
        at this moment, nothing is dropped; nor is an index that was made otherwise than here.
        """
        with self.as_login():
            if not self.is_first():
                return
        try:
            with self.as_login(), self.session.begin_nested():
                self.lock_at_once(*self.tables)
                for needed in self._search_indexes(models):
                    for each in needed.found:
                        if needed.is_restored(each):
                            self.session.execute(text(f"DROP INDEX {each.identifier}"))
        except OperationalError:  # in use
            return

    def list_unbuilt(self, models: Collection[EmbeddingModel] = ()) -> list[NeededIndex]:
        """List the indexes that a first load left out, this one or one that was stopped."""
        return [each for each in self._search_indexes(models) if each.state == "missing"]

    def build_search_index(
        self, index: NeededIndex, models: Collection[EmbeddingModel] = ()
    ) -> None:
        """Build an index; until the transaction ends others can only read."""
        self.lift_timeout()
        names = [each.vectors.name for each in self.corpora]
        # Counting would count those of the scope. A number has four bytes.
        size = self.session.scalar(SIZE_OF_VECTORS, {"tables": names}) or 0
        memory = max(
            (build_memory_kb(each, size // (4 * each.dimensions)) for each in models), default=None
        )
        with self.as_login():
            if memory is None:
                self.build(index.create_at_once)
            else:
                self.build(index.create_at_once, memory=f"{memory}kB")

    def _search_indexes(self, models: Collection[EmbeddingModel]) -> Iterator[NeededIndex]:
        diagnosis = DiagnosisRepository(self.session)
        for corpus in self.corpora:
            yield from diagnosis.list_needed(corpus, models)
