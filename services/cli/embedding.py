"""pgcorpus embed, pgcorpus models."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from db.engine import Database
from db.search.corpora import CORPORA, named
from services.cli.output import AsJson, CorpusName, fail, print_json, progress_bar, say, table
from services.embedding.choice import Choice
from services.embedding.embed import EmbeddingService, EmbedReport
from services.embedding.embedder import PROVIDERS

models = typer.Typer(help="Embedding models, and which corpus uses which.", no_args_is_help=True)

MAX_SHOWN_FAILURES = 20


def embed(
    corpus: CorpusName = "knowledge",
    model: Annotated[
        str | None, typer.Option(help="By default the one the corpus is set to.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the vectors that are missing or of an older text. Stopped, it goes on where it was."""
    report = embed_with_bar(Database.from_env(), corpus, model)
    if as_json:
        print_json(report.as_json())
    else:
        say(
            f"{report.embedded} embedded with {report.model} ({report.stale} of them anew), "
            f"{report.failed} failed, {report.duration_s:.1f} s"
        )
    for key, reason in report.failures[:MAX_SHOWN_FAILURES]:
        fail(f"{key}: {reason}")
    if report.failed:
        raise typer.Exit(1)


def embed_with_bar(database: Database, corpus: str, model: str | None) -> EmbedReport:
    """Embed under a progress bar, and say aloud when another model stands in."""
    with progress_bar("embedding") as bar:
        task = bar.task_ids[0]

        def start(choice: Choice, total: int) -> None:
            bar.update(
                task,
                total=total or 1,
                completed=not total,
                description=f"embedding with {choice.name}",
            )
            if choice.reason:
                say(choice.reason)

        return EmbeddingService(database).embed(
            corpus, model=model, on_start=start, on_progress=lambda n: bar.advance(task, n)
        )


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show the registered models, who uses them and how much they cover."""
    with Database.from_env().unit_of_work() as work:
        active = {name: work.embeddings.find_active_model(name) for name in sorted(CORPORA)}
        rows: list[dict[str, Any]] = [
            {
                "name": model.name,
                "dimensions": model.dimensions,
                "provider": model.provider,
                "active_for": [n for n, used in active.items() if used and used.name == model.name],
                "coverage": {
                    name: vars(work.embeddings.coverage(corpus, model.name))
                    for name, corpus in CORPORA.items()
                },
            }
            for model in work.embeddings.list_models()
        ]
    if as_json:
        print_json(rows)
        return
    table(
        "Embedding models",
        ["name", "dimensions", "provider", "active for", *(f"in {name}" for name in CORPORA)],
        [
            (
                row["name"],
                row["dimensions"],
                row["provider"],
                ", ".join(row["active_for"]),
                *(f"{done['embedded']} of {done['total']}" for done in row["coverage"].values()),
            )
            for row in rows
        ],
    )


@models.command("add")
def add_model(
    name: Annotated[str, typer.Argument(help="As its provider calls it.")],
    dimensions: Annotated[int, typer.Option(min=1, max=16_000, help="Length of its vectors.")],
    provider: Annotated[str, typer.Option(help=f"One of {', '.join(PROVIDERS)}.")],
    as_json: AsJson = False,
) -> None:
    """Register a model and make its index."""
    if provider not in PROVIDERS:
        raise typer.BadParameter(f"known: {', '.join(PROVIDERS)}", param_hint="--provider")
    with Database.from_env().unit_of_work() as work:
        work.embeddings.add_model(name, dimensions=dimensions, provider=provider)
        work.commit()
    if as_json:
        print_json({"name": name, "dimensions": dimensions, "provider": provider})
    else:
        say(f"added; make vectors with: pgcorpus embed --model {name}")


@models.command("use")
def use_model(
    corpus: Annotated[str, typer.Argument(help="Which corpus.")],
    name: Annotated[str, typer.Argument(help="A registered model.")],
    as_json: AsJson = False,
) -> None:
    """Make searches of a corpus use a model, from the next one on."""
    of = named(corpus)
    with Database.from_env().unit_of_work() as work:
        work.embeddings.use_model(of.name, name)
        covered = work.embeddings.coverage(of, name)
        work.commit()
    if as_json:
        counts = {"embedded": covered.embedded, "total": covered.total}
        print_json({"corpus": corpus, "model": name} | counts)
        return
    say(f"{corpus} uses {name}: {covered.embedded} of {covered.total} passages have its vectors")
    if covered.embedded < covered.total:
        say(f"make the others with: pgcorpus embed --corpus {corpus} --model {name}")
