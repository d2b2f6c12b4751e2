"""The choice of the model that a corpus is embedded and searched with, and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pgcorpus.db.choices import IndexKind
from pgcorpus.db.models.embeddings import EmbeddingModel
from pgcorpus.db.search.corpus import Corpus
from pgcorpus.db.settings import Settings
from pgcorpus.db.uow import UnitOfWork
from pgcorpus.services.embedding.local import INSTALL, is_installed

OFFLINE_MODEL: Final = "hashing"


@dataclass(frozen=True)
class Choice:
    """The chosen model, and the reason.

    Attributes:
        name: As registered.
        dimensions: Length of its vectors.
        provider: Who makes them.
        index_kind: What their index holds; a search must compare the same.
        cosine_spread: How far their cosines spread, or None where it was not measured.
        languages: Text search configurations that it knows, or None for all.
        reason: Why it is another than the one the corpus is set to, or None.
        is_limited: Whether a ceiling of tokens holds for the scope that writes.
    """

    name: str
    dimensions: int
    provider: str
    index_kind: IndexKind = "halfvec"
    cosine_spread: float | None = None
    languages: tuple[str, ...] | None = None
    reason: str | None = None
    is_limited: bool = False


def choose(
    work: UnitOfWork, corpus: Corpus, settings: Settings, model_name: str | None = None
) -> Choice:
    """Find the model: the one named, else ``EMBEDDING_MODEL``, else the corpus's active one.

    Where no model was named for the call and the provider cannot be reached at all (no API key,
    no package), the offline model stands in, and the choice says so. Never in production.

    Args:
        work: To read the registry.
        corpus: What is embedded or searched.
        settings: For the key and the environment.
        model_name: What the caller asked for.

    Raises:
        UnknownModel: The model is not registered.
    """
    active = work.models.find_active_model(corpus.name)
    wanted = model_name or settings.embedding_model or (active.name if active else OFFLINE_MODEL)
    model = work.models.get_model(wanted)
    missing = _missing(model.provider, settings)
    if missing is None or model_name is not None or settings.production:
        return as_choice(model)
    offline = work.models.get_model(OFFLINE_MODEL)
    return as_choice(
        offline, f"{missing}, so the offline model {offline.name!r} stands in for {model.name!r}"
    )


def list_in_use(work: UnitOfWork, corpus: Corpus, settings: Settings) -> list[EmbeddingModel]:
    """Return the model that a search here would use, and the one that it stands in for, if any."""
    chosen = choose(work, corpus, settings)
    active = work.models.find_active_model(corpus.name)
    model = work.models.get_model(chosen.name)
    return [model] if active is None or active is model else [model, active]


def as_choice(model: EmbeddingModel, reason: str | None = None) -> Choice:
    """Return the choice of a model, and why it is another than the corpus is set to, if it is."""
    return Choice(
        name=model.name,
        dimensions=model.dimensions,
        provider=model.provider,
        index_kind=model.index_kind,
        cosine_spread=model.cosine_spread,
        languages=None if model.languages is None else tuple(model.languages),
        reason=reason,
    )


def _missing(provider: str, settings: Settings) -> str | None:
    """Return what a provider lacks to be asked, or None."""
    if provider == "openai" and settings.openai_api_key is None:
        return "OPENAI_API_KEY is not set"
    if provider == "local" and not is_installed():
        return f"the local model is not installed ({INSTALL})"
    return None
