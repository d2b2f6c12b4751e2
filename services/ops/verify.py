"""The verification of a model before it is used.

Its vectors are complete, and its index finds them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from pgcorpus.db.choices import HALFVEC_MAX_DIMENSIONS
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import EmbedderUnavailable
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.repositories.embeddings import Coverage
from pgcorpus.db.repositories.vector_indexes import IndexState
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.search.page import Hit
from pgcorpus.db.search.question import Question
from pgcorpus.services.choices import LEAST_RECALL
from pgcorpus.services.embedding.choice import choose
from pgcorpus.services.embedding.embed import count_covered
from pgcorpus.services.embedding.embedder import Embedder, Embedders
from pgcorpus.services.ops.switch import choose_corpora
from pgcorpus.services.search.service import SearchService

DEPTH: Final = 10
"""Hits that are compared: overlap@10 and recall@10."""


SAMPLED: Final = 100
"""Passages whose beginnings stand in for questions."""

COMPARED: Final = 30
COMPARING_SECONDS: Final = 60.0
"""Stored vectors that ``measure_recall`` compares with all others, and the longest time for it: of
a million vectors of 3,072 dimensions each takes five seconds."""

ANY_QUESTION: Final = "question"
"""Words of a question of which only the vector counts."""

FIRST_WORDS: Final = 12
FIRST_CHARACTERS: Final = 200  # where a script puts no spaces between words

SAME: Final = 1e-6
"""Similarities this near are equal: which of two equal passages is found does not matter."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The findings on one model in one corpus.

    Attributes:
        corpus: Its name.
        coverage: How many passages have vectors.
        index_kind: What the model's index holds.
        index: Whether searches can use it.
        index_name: Of the one they use, or None.
        questions: How many were asked.
        compared_with: The model that searches use now, or None where that is the same one, has no
            vectors or cannot be asked.
        overlap: Share of its ten best hits that are among the ten best of the model in use, in
            [0, 1]; None where nothing was compared.
        recall: Share of the ten best hits of an exact scan that a search finds, in [0, 1]; None
            where nothing was asked.
        questions_from: ``file``, or ``passages`` where their beginnings stood in.
        problems: Sentences with what mends them; empty when the model may be taken into use.
    """

    corpus: str
    coverage: Coverage
    index_kind: str
    index: IndexState
    index_name: str | None
    questions: int
    compared_with: str | None
    overlap: float | None
    recall: float | None
    questions_from: Literal["file", "passages"] = "file"
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the findings as the command line prints them."""
        covered = self.coverage
        return {
            "corpus": self.corpus,
            "total": covered.total,
            "embedded": covered.embedded,
            "missing": covered.missing,
            "stale": covered.stale,
            "index": {"name": self.index_name, "kind": self.index_kind, "state": self.index},
            "questions": self.questions,
            "questions_from": self.questions_from,
            "compared_with": self.compared_with,
            "overlap@10": self.overlap,
            "recall@10": self.recall,
            "problems": self.problems,
        }


class _Noting:
    """An embedder that remembers the vector of its last question."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.model_name = embedder.model_name
        self.dimensions = embedder.dimensions
        self.batch_size = embedder.batch_size

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        return self._embedder.embed_documents(texts)

    def embed_question(self, text: str) -> np.ndarray:
        self.last = self._embedder.embed_question(text)
        return self.last


class _Stored:
    """An embedder that answers every question with a vector that is stored already."""

    batch_size = 1

    def __init__(self, model: EmbeddingModel) -> None:
        self.model_name = model.name
        self.dimensions = model.dimensions
        self.vector = np.zeros(model.dimensions, dtype=np.float32)

    def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.vector] * len(texts))

    def embed_question(self, _text: str) -> np.ndarray:
        return self.vector


def measure_recall(database: Database, corpus: Corpus, model: EmbeddingModel) -> float | None:
    """Return the share of the ten best hits that searches find, asked for stored vectors.

    No provider is asked: the questions are vectors of the corpus itself.

    Args:
        database: Where the vectors are.
        corpus: One that is searched without a scope.
        model: The model.

    Returns:
        The mean recall@10, in [0, 1]; None where there are no vectors.

    Raises:
        EmbedderUnavailable: The vector leg of a search did not answer.
    """
    # Its searches are not logged.
    quiet = Database(replace(database.settings, database_url=database.url, metrics_enabled=False))
    try:
        with quiet.unit_of_work() as work:
            vectors = work.embeddings.sample_vectors(corpus, model.name, limit=COMPARED)
        stored = _Stored(model)
        service = SearchService(quiet, embedder=stored)
        recalls: list[float] = []
        began = time.monotonic()
        for stored.vector in vectors:
            hits = _hits(service, corpus, ANY_QUESTION)
            with quiet.unit_of_work() as work:
                exact = work.embeddings.list_nearest(corpus, model.name, stored.vector, limit=DEPTH)
            if exact:
                recalls.append(_recall(hits, exact))
            if time.monotonic() - began > COMPARING_SECONDS:
                break
        return _mean(recalls)
    finally:
        quiet.close()


class ModelVerifier:
    """Compares a model with its declaration, and with the model in use, by searching.

    Args:
        database: Where the models and the passages are.
        embedder: Makes the vectors of the questions; by default that of the model.
    """

    def __init__(self, database: Database, *, embedder: Embedder | None = None) -> None:
        # Its searches are not logged.
        self._database = Database(
            replace(database.settings, database_url=database.url, metrics_enabled=False)
        )
        self._embedders = Embedders(database.settings, embedder)

    def verify(
        self,
        name: str,
        *,
        among: Sequence[str] = (),
        questions: Sequence[str] = (),
        least_recall: float = LEAST_RECALL,
        on_start: Callable[[str, int], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Verification]:
        """Count a model's vectors, examine its index, and ask it questions.

        Args:
            name: The model.
            among: Names of corpora; by default all that have passages.
            questions: What people ask. Without any, the beginnings of some passages stand in.
                They are compared by their words: phrases and exclusions narrow every model alike.
            least_recall: Recall@10 below this is a problem.
            on_start: Called with each corpus and the number of questions.
            on_progress: Called with the number of questions done since the last call.

        Returns:
            One finding for each corpus.

        Raises:
            UnknownModel: There is no such model.
            UnknownCorpus: There is no such corpus.
            EmptyQuestion: One of the questions has no word.
            EmbeddingError: The questions could not be embedded.
        """
        words = [Question.parse(each).words for each in questions]
        try:
            with self._database.unit_of_work() as work:
                chosen = choose_corpora(work, name, among)
                model = work.models.get_model(name)  # after it: scopes forget what was read
            findings = []
            for corpus in chosen:
                asked = words or self._beginnings(corpus)
                if on_start is not None:
                    on_start(corpus.name, len(asked))
                finding = self._verify(model, corpus, asked, on_progress=on_progress)
                findings.append(
                    replace(
                        finding,
                        questions_from="file" if words else "passages",
                        problems=tuple(_problems(model, finding, least_recall)),
                    )
                )
            return findings
        finally:
            self._database.close()

    def _beginnings(self, corpus: Corpus) -> list[str]:
        """List the beginnings of passages, which stand in for questions."""
        with self._database.unit_of_work() as work:
            some = work.embeddings.sample_texts(corpus, limit=SAMPLED)
        return list(filter(None, map(_beginning, some)))

    def _verify(
        self,
        model: EmbeddingModel,
        corpus: Corpus,
        questions: Sequence[str],
        *,
        on_progress: Callable[[int], None] | None,
    ) -> Verification:
        with self._database.unit_of_work() as work:
            coverage = count_covered(work, corpus, model.name)
            index = work.vector_indexes.index_state(corpus, model)
            indexes = work.vector_indexes.list_indexes(corpus, model)
            now = choose(work, corpus, self._database.settings).name
            comparable = now != model.name and work.embeddings.has_vectors(corpus, now)
        embedder = _Noting(self._embedders.of(model))
        service, in_use = (
            SearchService(self._database, embedder=embedder),
            SearchService(self._database),
        )
        overlaps: list[float] = []
        recalls: list[float] = []
        # Within a scope only a service's login searches, and this is an operator's.
        for question in questions if coverage.embedded and not corpus.needs_scope else ():
            hits = _hits(service, corpus, question)
            with self._database.unit_of_work() as work:
                exact = work.embeddings.list_nearest(corpus, model.name, embedder.last, limit=DEPTH)
            if exact:  # else the defaults of the corpus show none of its passages
                recalls.append(_recall(hits, exact))
            if comparable:
                try:
                    overlaps.extend(_overlap(hits, _hits(in_use, corpus, question)))
                except EmbedderUnavailable:  # the provider of the model in use is not at hand
                    comparable = False
            if on_progress is not None:
                on_progress(1)
        return Verification(
            corpus=corpus.name,
            coverage=coverage,
            index_kind=model.index_kind,
            index=index,
            index_name=next((each.name for each in indexes if each.usable), None),
            questions=len(recalls),
            compared_with=now if comparable else None,
            overlap=_mean(overlaps) if comparable else None,
            recall=_mean(recalls),
        )


def _hits(service: SearchService, corpus: Corpus, question: str) -> tuple[Hit, ...]:
    """Return the ten best by vectors alone.

    Raises:
        EmbedderUnavailable: The vector leg did not answer.
    """
    page = service.search(question, corpus=corpus.name, mode="vector", limit=DEPTH)
    for leg in page.legs:
        if leg.status != "ok":
            raise EmbedderUnavailable(f"a question could not be asked: {leg.reason}")
    return page.hits


def _recall(hits: Sequence[Hit], exact: Sequence[float]) -> float:
    """Return the share of the best similarities that the hits reach."""
    found = sum(hit.scores["vector"] >= exact[-1] - SAME for hit in hits)
    return min(found / len(exact), 1.0)


def _overlap(hits: Sequence[Hit], others: Sequence[Hit]) -> list[float]:
    """Return the share of the others that are among the hits; empty where there are no others."""
    shared = {hit.id for hit in hits} & {hit.id for hit in others}
    return [len(shared) / len(others)] if others else []


def _beginning(text: str) -> str:
    """Return the first words of a passage, without signs that mean something in a question."""
    return " ".join(re.findall(r"[^\W_]+", text)[:FIRST_WORDS])[:FIRST_CHARACTERS]


def _mean(shares: Sequence[float]) -> float | None:
    return round(sum(shares) / len(shares), 4) if shares else None


def _problems(model: EmbeddingModel, found: Verification, least_recall: float) -> list[str]:
    """List the reasons against using the model, and what mends them."""
    mend = f"mend it with: pgcorpus models backfill {model.name} --corpus {found.corpus}"
    covered, problems = found.coverage, []
    if covered.missing:
        problems.append(f"{covered.missing} of {covered.total} passages have no vector; {mend}")
    if covered.stale:
        problems.append(f"{covered.stale} vectors are of older texts; {mend}")
    if found.index != "ready":
        problems.append(f"the {model.index_kind} index is {found.index}; {mend}")
    elif found.recall is not None and found.recall < least_recall:
        few = model.index_kind == "binary" and model.dimensions <= HALFVEC_MAX_DIMENSIONS
        cure = (
            "signs alone do not tell the passages apart; drop the model and add it with "
            "--index halfvec"
            if few
            else f"build its index anew with: REINDEX INDEX CONCURRENTLY {found.index_name}"
        )
        problems.append(f"recall@{DEPTH} is {found.recall}, below {least_recall}: {cure}")
    return problems
