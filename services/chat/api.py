"""The old chat archive's HTTP interface, frozen, over this database; docs/reference/chat-api.md.

No web framework: a server mounts a method of ``ChatApi`` per route, and sends the status
and the model that it gives back.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import Annotated, Any, Concatenate, Final, Literal, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import (
    DataLayerError,
    EmptyQuestion,
    InvalidReference,
    InvalidSearch,
    NotFound,
    SearchError,
)
from pgcorpus.db.models.chat import Conversation, Message, Role
from pgcorpus.db.repositories.chat.conversations import ConversationSummary
from pgcorpus.db.search.corpora import CHAT
from pgcorpus.db.search.page import Hit
from pgcorpus.db.text import count_of
from pgcorpus.services.chat.exporting.exporter import ChatExporter
from pgcorpus.services.chat.exporting.markdown import ASSISTANTS, iso
from pgcorpus.services.chat.preview import plain, shorten
from pgcorpus.services.choices import MAX_LIMIT
from pgcorpus.services.search.service import SearchService

MAX_SUMMARIES: Final = 100
MAX_PREVIEW: Final = 200
MAX_CONTENT: Final = 300
MAX_LONG_PREVIEW: Final = 500
"""Characters of the longest preview. These four bounds are the contract's."""

VIEW_PREVIEW: Final = 200
"""Characters of a message that the view ``conversation_summaries`` gives."""

DIGITS: Final = 6
"""Digits of a distance: what is beyond comes from the order in which floating point numbers were
added."""

UNNAMED_ASSISTANT: Final = "AI"

SPEAKERS: Final[Mapping[Role, Literal["user", "assistant", "system"]]] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    # The contract has no tools. What one returns was said by neither side: it is the system's.
    "tool": "system",
}

SearchType = Literal["semantic", "keyword"]
MODES: Final[Mapping[str, Literal["vector", "text"]]] = {"semantic": "vector", "keyword": "text"}

DEFAULT_RESULTS: Final = 5

UNANSWERED: Final = frozenset({"failed", "timed_out"})

TRUE: Final = frozenset({"true", "1", "yes", "on"})

WHOLE: Final = re.compile(r"\s*[+-]?[0-9]{1,9}\s*")
"""A number as a query string has it; one with more digits is no page of anything."""

logger = logging.getLogger(__name__)


class Frozen(BaseModel):
    """A shape that clients depend on: no field more, none less."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Summary(Frozen):
    """A conversation in a list; ``date`` is ``""`` where it is not known."""

    id: str
    title: str
    preview: Annotated[str, Field(max_length=MAX_PREVIEW)]
    date: str
    source: str


class Pagination(Frozen):
    """The place of a page among all conversations; pages count from 1."""

    page: int
    limit: Annotated[int, Field(ge=1, le=MAX_SUMMARIES)]
    total: int
    has_next: bool
    has_prev: bool


class ConversationsPage(Frozen):
    """``GET /api/conversations``."""

    conversations: list[Summary]
    pagination: Pagination


class MessageView(Frozen):
    """A turn; ``id`` counts per role: ``user-1``, ``assistant-1``, ``user-2``."""

    id: str
    role: Literal["user", "assistant", "system"]
    content: str
    timestamp: str | None


class ConversationView(Frozen):
    """``GET /api/conversation/<id>``."""

    id: str
    title: str
    source: str
    date: str | None
    assistant_name: str
    messages: list[MessageView]


class HitMetadata(Frozen):
    """The conversation that a hit is a part of; ``id`` is the conversation's."""

    id: str
    title: str
    source: str
    earliest_ts: str | None
    latest_ts: str | None
    message_count: int
    is_chunk: bool


class SearchResult(Frozen):
    """A hit of ``GET /api/search``."""

    title: str
    date: str | None
    content: Annotated[str, Field(max_length=MAX_CONTENT)]
    metadata: HitMetadata


class SearchResults(Frozen):
    """``GET /api/search``."""

    query: str
    results: list[SearchResult]


class RagResult(Frozen):
    """A hit of ``POST /api/rag/query``; ``id`` is its conversation's.

    ``relevance`` is ``1.0 - distance``, to the bit.
    """

    id: str
    title: str
    content: str
    preview: Annotated[str, Field(max_length=MAX_LONG_PREVIEW)]
    source: str
    distance: Annotated[float, Field(ge=0, le=1)]
    relevance: Annotated[float, Field(ge=0, le=1)]
    metadata: HitMetadata


class RagResults(Frozen):
    """``POST /api/rag/query``."""

    query: str
    search_type: SearchType
    results: list[RagResult]


class Stats(Frozen):
    """The body of ``GET /api/stats``.

    Also that of ``GET /api/rag/health`` while the archive is healthy.
    """

    status: Literal["healthy"] = "healthy"
    collection_name: str
    document_count: int
    embedding_model: str


class Unhealthy(Frozen):
    """The body of ``GET /api/rag/health`` while the archive is not healthy."""

    status: Literal["unhealthy"] = "unhealthy"
    error: str


class Cleared(Frozen):
    """``POST /clear_db``."""

    status: Literal["success", "error"]
    message: str


class Failure(Frozen):
    """The body of any route that could not answer."""

    error: str


class BadRequest(Exception):
    """A parameter is missing or cannot be read."""


P = ParamSpec("P")
T = TypeVar("T")


def _answering(
    route: Callable[Concatenate[ChatApi, P], T],
) -> Callable[Concatenate[ChatApi, P], tuple[int, T | Failure]]:
    """Wrap a route so that it returns its status, and errors as the contract has them."""

    @wraps(route)
    def answer(self: ChatApi, /, *args: P.args, **kwargs: P.kwargs) -> tuple[int, T | Failure]:
        try:
            return 200, route(self, *args, **kwargs)
        except (BadRequest, EmptyQuestion, InvalidSearch) as error:
            return 400, Failure(error=str(error))
        except (NotFound, InvalidReference) as error:
            return 404, Failure(error=str(error))
        except DataLayerError as error:
            return 500, Failure(error=str(error))
        except Exception:  # clients expect JSON, and no client is to read our insides
            logger.exception("%s failed", route.__name__)
            return 500, Failure(error="internal error; the server's log has more")

    return answer


class ChatApi:
    """The routes, a method each: from a request to the status and body of its answer.

    Numbers and flags may be the text that stands in a query string. Every error is a body, too.

    Args:
        database: Where the archive is.
        search: Searches it; by default with the archive's own model.
    """

    def __init__(self, database: Database, *, search: SearchService | None = None) -> None:
        self._database = database
        self._search = search or SearchService(database)

    @_answering
    def conversations(self, page: int | str = 1, limit: int | str = 50) -> ConversationsPage:
        """Answer ``GET /api/conversations``: newest first.

        Args:
            page: From 1; what is lower, or no number, is 1.
            limit: 1 to 100; what is beyond is the nearest of these.
        """
        number = max(_whole("page", page, 1), 1)
        size = min(max(_whole("limit", limit), 1), MAX_SUMMARIES)
        passed = (number - 1) * size
        with self._database.unit_of_work() as work:
            total = work.chat.count()
            found = (
                work.chat.list_summaries(limit=size, offset=passed).items if passed < total else ()
            )
        return ConversationsPage(
            conversations=[summary_of(each) for each in found],
            pagination=Pagination(
                page=number,
                limit=size,
                total=total,
                has_next=passed + size < total,
                has_prev=number > 1,
            ),
        )

    @_answering
    def conversation(self, conversation_id: str) -> ConversationView:
        """Answer ``GET /api/conversation/<id>`` with the main branch.

        ``source_type:source_id``, and the raw identifier of the old system, will do.
        """
        with self._database.unit_of_work() as work:
            conversation = work.chat.get_by_reference(conversation_id)
            return view_of(conversation, work.messages.list_messages(conversation.id))

    @_answering
    def search(
        self, q: str | None = None, n: int | str = 5, keyword: bool | str = False
    ) -> SearchResults:
        """Answer ``GET /api/search``: the best messages, by words or, by default, by meaning."""
        by_words = str(keyword).lower() in TRUE
        query, hits = self._search_conversations("q", q, n, "keyword" if by_words else "semantic")
        return SearchResults(
            query=query, results=[search_result_of(hit, summary) for hit, summary in hits]
        )

    @_answering
    def rag_query(self, body: object) -> RagResults:
        """Answer ``POST /api/rag/query``: the best messages, ready for a prompt.

        Args:
            body: The request's JSON.
        """
        if not isinstance(body, Mapping):
            raise BadRequest("the body must be a JSON object with the key query")
        search_type: Any = body.get("search_type")
        if search_type is None:  # a null is as good as nothing
            search_type = "semantic"
        if search_type not in ("semantic", "keyword"):
            raise BadRequest(f"search_type must be semantic or keyword, not {search_type!r}")
        given = body.get("n_results")
        results = DEFAULT_RESULTS if given is None else given
        query, hits = self._search_conversations("query", body.get("query"), results, search_type)
        return RagResults(
            query=query,
            search_type=search_type,
            results=[rag_result_of(hit, summary) for hit, summary in hits],
        )

    @_answering
    def stats(self) -> Stats:
        """Answer ``GET /api/stats``: the number of messages, and the model that embeds them."""
        with self._database.unit_of_work() as work:
            model = work.models.find_active_model(CHAT.name)
            return Stats(
                collection_name=CHAT.name,
                document_count=work.searches.count(CHAT),
                embedding_model=model.name if model else "",
            )

    def health(self) -> tuple[int, Stats | Unhealthy]:
        """Answer ``GET /api/rag/health`` with the statistics. They need all that a search needs."""
        status, body = self.stats()
        return status, Unhealthy(error=body.error) if isinstance(body, Failure) else body

    @_answering
    def export(self, conversation_id: str) -> str:
        """Answer ``GET /export/<id>`` with Markdown."""
        return ChatExporter(self._database).export(conversation_id).text

    def clear_db(self) -> tuple[int, Cleared]:
        """Answer ``POST /clear_db``: delete every conversation for good."""
        status, done = self._clear()
        if isinstance(done, Failure):
            return status, Cleared(status="error", message=done.error)
        return status, Cleared(
            status="success",
            message=f"{count_of(done, 'conversation was', 'conversations were')} deleted",
        )

    @_answering
    def _clear(self) -> int:
        with self._database.unit_of_work() as work:
            deleted = work.chat.clear()
            work.commit()
        return deleted

    def _search_conversations(
        self, name: str, query: object, limit: object, search_type: SearchType
    ) -> tuple[str, list[tuple[Hit, ConversationSummary]]]:
        """Search, and return the question, and hits with their conversations."""
        if not isinstance(query, str) or not query.strip():
            raise BadRequest(f"the parameter {name} is required")
        most = min(max(_whole("the number of results", limit), 1), MAX_LIMIT)
        page = self._search.search(query, corpus=CHAT.name, mode=MODES[search_type], limit=most)
        if not page.hits and (failed := [leg for leg in page.legs if leg.status in UNANSWERED]):
            raise SearchError(failed[0].reason)  # an empty page would say that there is nothing
        with self._database.unit_of_work() as work:
            known = work.chat.summarize({hit.metadata["conversation"] for hit in page.hits})
        held = ((hit, known.get(hit.metadata["conversation"])) for hit in page.hits)
        return query, [(hit, summary) for hit, summary in held if summary is not None]


def summary_of(summary: ConversationSummary) -> Summary:
    """Return a conversation as a list shows it."""
    return Summary(
        id=str(summary.id),
        title=summary.title,
        preview=shorten(
            plain(summary.preview),
            MAX_PREVIEW,
            goes_on=len(summary.preview) == VIEW_PREVIEW,
        ),
        date=_time(summary.created_at) or "",
        source=summary.source_type,
    )


def view_of(conversation: Conversation, messages: Iterable[Message]) -> ConversationView:
    """Return a conversation with its turns."""
    return ConversationView(
        id=str(conversation.id),
        title=conversation.title,
        source=conversation.source_type,
        date=_time(conversation.created_at),
        assistant_name=ASSISTANTS.get(conversation.source_type, UNNAMED_ASSISTANT),
        messages=list(_turns(messages)),
    )


def search_result_of(hit: Hit, summary: ConversationSummary) -> SearchResult:
    """Return a hit for people: its date is the conversation's, as everywhere else."""
    return SearchResult(
        title=hit.title,
        date=_time(summary.created_at),
        content=shorten(hit.content, MAX_CONTENT),
        metadata=metadata_of(summary),
    )


def rag_result_of(hit: Hit, summary: ConversationSummary) -> RagResult:
    """Return a hit for a prompt: its id is the conversation's, and the score is the relevance."""
    distance = round(min(max(1.0 - hit.score, 0.0), 1.0), DIGITS)
    return RagResult(
        id=str(summary.id),
        title=hit.title,
        content=hit.content,
        preview=shorten(hit.content, MAX_LONG_PREVIEW),
        source=summary.source_type,
        distance=distance,
        relevance=1.0 - distance,
        metadata=metadata_of(summary),
    )


def metadata_of(summary: ConversationSummary) -> HitMetadata:
    """Return the conversation of a hit; a hit is always a part of one."""
    return HitMetadata(
        id=str(summary.id),
        title=summary.title,
        source=summary.source_type,
        earliest_ts=_time(summary.first_message_at),
        latest_ts=_time(summary.last_message_at),
        message_count=summary.message_count,
        is_chunk=True,
    )


def _turns(messages: Iterable[Message]) -> Iterable[MessageView]:
    said: Counter[str] = Counter()
    for message in messages:
        role = SPEAKERS[message.role]
        said[role] += 1
        yield MessageView(
            id=f"{role}-{said[role]}",
            role=role,
            content=message.content,
            timestamp=_time(message.created_at),
        )


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment)


def _whole(name: str, value: Any, otherwise: int | None = None) -> int:
    """Read a whole number; return *otherwise*, if that is given, for what is none.

    Raises:
        BadRequest: It is none.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value)
    if otherwise is not None:
        return otherwise
    raise BadRequest(f"{name} must be a whole number, not {value!r}")
