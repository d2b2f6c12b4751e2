"""Fusion weights of a corpus, tuned to judged questions, and applied as a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import EmptyQuestion, InvalidSearch
from pgcorpus.db.repositories.rankings import StoredRanking
from pgcorpus.db.scope import Scope
from pgcorpus.db.search.corpora import get_corpus
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.page import Hit, SearchPage
from pgcorpus.services.corpus import Progress
from pgcorpus.services.embedding.choice import choose
from pgcorpus.services.embedding.embedder import Embedder
from pgcorpus.services.evaluation.beir import Judgements
from pgcorpus.services.learning.report import WeightsReport
from pgcorpus.services.learning.tuning import Judged, Tuned, tune
from pgcorpus.services.search.service import SearchService, stretch

CANDIDATES: Final = 30
"""Candidates of each leg: as many as a search for a page of ten hits has."""

KEY: Final = "chunk_id"
"""The column of a hit that names it to its authors, in corpora that have one."""

ONE_LEG: Final = ({"vector": 1.0, "text": 0.0}, {"vector": 0.0, "text": 1.0})
"""Weights by whose order the candidates of one leg come first. Both legs score all of them."""


@dataclass(frozen=True, kw_only=True)
class TuningReport(WeightsReport):
    """The result of tuning to judged questions.

    Where the model does not know their language, today's vector leg has less than by default.

    Attributes:
        tuned: What was found, for the scores as they are.
        notes: What was left out, a sentence each.
    """

    tuned: Tuned
    notes: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the report as the command line prints it."""
        return vars(self) | {"tuned": self.tuned.as_json()}


class TuningService:
    """Tunes the fusion weights of a corpus to judged questions.

    Args:
        database: Where the passages are.
        scope: The tenant; None: searches without a scope, whose ranking everybody shares.
        embedder: Makes the questions' vectors; by default that of the corpus's active model.
    """

    def __init__(
        self, database: Database, scope: Scope | None = None, *, embedder: Embedder | None = None
    ) -> None:
        self._database = database
        self._scope = scope
        self._search = SearchService(database, embedder=embedder)

    def tune(
        self,
        corpus: str,
        judgements: Judgements,
        *,
        key: str | None = None,
        apply: bool = False,
        progress: Progress | None = None,
    ) -> TuningReport:
        """Find the weights under which judged questions are answered best, and apply them if asked.

        Each question is searched for twice, for the candidates of either leg with the scores of
        both; the fusion is linear in the weights, and all of them are tried on these scores.
        Boosts of a learned ranking stay as they are.

        Args:
            corpus: Its name.
            judgements: Questions, and the documents that are relevant to them.
            key: The column of the hits that has the documents' ids, or ``id``; by default
                ``chunk_id``, or ``id`` in corpora without. Of several hits the best one counts.
            apply: Store what was found as the next version, which searches then use; nothing is
                stored where there is nothing to gain.
            progress: Called with the questions asked, and how many there are.

        Raises:
            UnknownCorpus: There is no such corpus.
            InvalidSearch: A leg cannot answer, the corpus has no such column, or no judged document
                was found.
            MissingScope: The corpus is searched only within a scope.
            NotPermitted: It is applied for everybody, and the role is no administrator.
        """
        of = get_corpus(corpus)
        key = self._choose_key(of, key)
        with self._database.unit_of_work(self._scope) as work:
            embedder = self._search.embedders.model_name
            factor = stretch(choose(work, of, self._database.settings, embedder))
            active = work.rankings.find_active(of)
            boosts = {} if active is None else work.rankings.list_boosts(of, active)
        asker = _Asker(self._search, of, self._scope, key, boosts)
        judged, today = asker.ask(judgements, progress or (lambda _done, _total: None))
        tuned = tune(judged, today)
        weights = _weigh(tuned.share, factor)
        report = TuningReport(
            corpus=of.name,
            scope=of.name_scope(self._scope),
            tuned=tuned,
            today=_weigh(today, factor),
            today_version=None if active is None else f"version {active.version}, {active.scope}",
            weights=weights,
            notes=[*judgements.notes, *asker.notes],
        )
        if not (apply and tuned.is_new):
            return report
        estimate = {} if tuned.estimate is None else tuned.estimate._asdict()
        with self._database.unit_of_work(self._scope) as work:
            stored = work.rankings.apply(
                of,
                weights=weights,
                boosts=boosts,
                estimate=estimate | {"questions": tuned.questions},
            )
            work.commit()
        return replace(report, applied=stored.version)

    def roll_back(self, corpus: str) -> tuple[StoredRanking, StoredRanking | None] | None:
        """Take back the version that searches of a corpus use within the scope.

        Returns:
            It, and the version before, which is used again, or None where none was; None alone
            where the scope has no active version.

        Raises:
            UnknownCorpus: There is no such corpus.
            NotPermitted: It is everybody's, and the role is no administrator.
        """
        with self._database.unit_of_work(self._scope) as work:
            taken_back = work.rankings.roll_back(get_corpus(corpus))
            work.commit()
        return taken_back

    def list_versions(self, corpus: str) -> Sequence[StoredRanking]:
        """List the versions of a corpus's ranking within the scope, the newest first.

        Raises:
            UnknownCorpus: There is no such corpus.
            MissingScope: The corpus is searched only within a scope.
        """
        with self._database.unit_of_work(self._scope) as work:
            return work.rankings.list_versions(get_corpus(corpus))

    @staticmethod
    def _choose_key(corpus: Corpus, key: str | None) -> str:
        known = ("id", *corpus.metadata)
        if key is None:
            return KEY if KEY in known else "id"
        if key not in known:
            raise InvalidSearch(
                f"hits of {corpus.name} have no column {key!r}; known: {', '.join(known)}"
            )
        return key


class _Asker:
    """Asks judged questions for the scores of both legs.

    Attributes:
        notes: What was left out.
    """

    def __init__(
        self,
        search: SearchService,
        corpus: Corpus,
        scope: Scope | None,
        key: str,
        boosts: Mapping[Any, float],
    ) -> None:
        self._search = search
        self._corpus = corpus
        self._scope = scope
        self._key = key
        self._boosts = boosts
        self.notes: list[str] = []

    def ask(self, judgements: Judgements, progress: Progress) -> tuple[list[Judged], float]:
        """Ask every question that has a word.

        Returns:
            The questions, and the share that the vector leg has where no weights are given.
        """
        if any(query.scope is not None for query in judgements.queries):
            raise InvalidSearch(
                "a question has a scope, and weights are tuned for searches of the whole corpus: "
                "leave it out"
            )
        judged: list[Judged] = []
        today: float | None = None
        total = len(judgements.queries)
        for done, query in enumerate(judgements.queries):
            progress(done, total)
            try:
                pages = [self._search_for(query.text, weights=weights) for weights in ONE_LEG]
            except EmptyQuestion:
                continue
            self._refuse_unanswered(pages[0])
            judged.append(self._judge(query.id, pages, judgements.judgments[query.id]))
            if today is None and judged[-1].text is not None:
                today = self._search_for(query.text).weights["vector"]
        progress(total, total)
        if silent := total - len(judged):
            self.notes.append(f"questions without a word to search for, left out: {silent}")
        if today is None:
            raise InvalidSearch(
                "no question was answered by both legs, so there is nothing to weigh"
            )
        if not any(each.grades.get(name, 0) > 0 for each in judged for name in each.documents):
            raise InvalidSearch(
                f"no judged document was found: is {self._key} of {self._corpus.name} what they go "
                f"by? Name another column with --key: {', '.join(('id', *self._corpus.metadata))}"
            )
        return judged, today

    def _search_for(self, question: str, weights: Mapping[str, float] | None = None) -> SearchPage:
        return self._search.search(
            question,
            corpus=self._corpus.name,
            limit=CANDIDATES,
            weights=weights or {},
            scope=self._scope,
        )

    def _refuse_unanswered(self, page: SearchPage) -> None:
        """Raise where the vector leg does not answer."""
        (leg,) = (leg for leg in page.legs if leg.name == "vector")
        if leg.status != "ok":
            raise InvalidSearch(
                f"the vector leg cannot answer, so there is nothing to weigh: {leg.reason}"
            )

    def _judge(self, key: str, pages: Sequence[SearchPage], grades: Mapping[str, int]) -> Judged:
        """Collect the candidates of both legs; fuzzy stands in for text."""
        hits = list({hit.id: hit for page in pages for hit in page.hits}.values())
        words = next((leg for leg in ("text", "fuzzy") if leg in pages[0].weights), None)
        return Judged(
            key=key,
            documents=[self._name(hit) for hit in hits],
            vector=_list_scores(hits, "vector"),
            text=None if words is None else _list_scores(hits, words),
            boosts=np.array([self._boosts.get(hit.id, 0.0) for hit in hits]),
            grades=grades,
        )

    def _name(self, hit: Hit) -> str:
        return str(hit.id if self._key == "id" else hit.metadata[self._key])


def _list_scores(hits: Sequence[Hit], leg: str) -> np.ndarray:
    return np.array([hit.scores.get(leg, 0.0) for hit in hits])


def _weigh(share: float, factor: float) -> dict[str, float]:
    """Return the weights, with the sum 1, that give the vector leg its share once stretched."""
    vector, text = share / factor, 1 - share
    return {"vector": vector / (vector + text), "text": text / (vector + text)}
