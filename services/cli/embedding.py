"""pgcorpus embed, pgcorpus models."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.progress import Progress

from pgcorpus.db.choices import HALFVEC_MAX_DIMENSIONS, IndexKind
from pgcorpus.db.text import count_of
from pgcorpus.services.choices import LEAST_RECALL, PROVIDERS
from pgcorpus.services.cli.output import (
    AsJson,
    CorpusName,
    fail,
    print_json,
    progress_bar,
    say,
    table,
    warn,
)
from pgcorpus.services.importers.language import NAMES

if TYPE_CHECKING:
    from pgcorpus.db.engine import Database
    from pgcorpus.db.search.corpus import Corpus
    from pgcorpus.db.uow import UnitOfWork
    from pgcorpus.services.embedding.choice import Choice
    from pgcorpus.services.embedding.embed import EmbedReport
    from pgcorpus.services.ops.switch import Switch
    from pgcorpus.services.ops.verify import Verification


models = typer.Typer(
    help=(
        "Embedding models, and which corpus uses which.\n\n"
        "A switch without downtime: add, backfill, verify, use; then rollback, or drop the old "
        "one. Searches run all the while. Every step can be stopped and run again."
    ),
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")]
OfCorpus = Annotated[str, typer.Argument(metavar="CORPUS", help="The corpus.")]
Among = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus", "-c", help="Only this corpus; can be repeated. By default all with passages."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Switch even where the command would refuse.")]

MAX_SHOWN_FAILURES = 20

MODEL_NAME: Final = re.compile("[A-Za-z0-9][A-Za-z0-9._:/-]*")
"""A model's name, by the constraint ``valid_model_format``."""

MAX_NAME_CHARACTERS: Final = 100


def model_name(value: str) -> str:
    """Check a name that a model can be registered under."""
    if not MODEL_NAME.fullmatch(value):
        from pgcorpus.db.errors import MEANINGS

        raise typer.BadParameter(MEANINGS["valid_model_format"])
    if len(value) > MAX_NAME_CHARACTERS:
        raise typer.BadParameter(f"a model's name has at most {MAX_NAME_CHARACTERS} characters")
    return value


def check_languages(values: list[str] | None) -> list[str] | None:
    """Check the names of text search configurations."""
    known = [name for name in NAMES if name != "simple"]
    if unknown := set(values or ()).difference(known):
        raise typer.BadParameter(
            f"there is no language {min(unknown)!r}; known: {', '.join(known)}"
        )
    return values


def embed(
    corpus: CorpusName = "knowledge",
    model: Annotated[
        str | None, typer.Option(help="The model; by default the corpus's active one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make missing and stale vectors. Stopped, it goes on where it was."""
    from pgcorpus.db.engine import Database

    report = embed_with_bar(Database.from_env(), corpus, model)
    if as_json:
        print_json(report.as_json())
    else:
        say(
            f"{report.embedded} embedded with {report.model} ({report.stale} of them anew), "
            f"{report.failed} failed, {report.duration_s:.1f} s"
        )
    if report.waiting:
        fail(
            f"{report.waiting} wait: a ceiling of tokens a day does not allow them now; they are "
            "embedded by a worker from midnight UTC on; see: pgcorpus jobs stats; raise it with: "
            "pgcorpus tenants ceiling --help"
        )
    for key, reason in report.failures[:MAX_SHOWN_FAILURES]:
        fail(f"{key}: {reason}")
    if report.failed or report.waiting:
        raise typer.Exit(1)


def embed_with_bar(database: Database, corpus: str, model: str | None) -> EmbedReport:
    """Embed under a progress bar, and say aloud when another model stands in."""
    from pgcorpus.services.embedding.embed import EmbeddingService

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
    from pgcorpus.db.engine import Database
    from pgcorpus.db.search.corpora import list_corpora

    corpora = list_corpora()
    names = [each.name for each in corpora]
    with Database.from_env().unit_of_work() as work:
        active = {name: work.models.find_active_model(name) for name in names}
        previous = {name: work.models.find_previous_model(name) for name in names}
        rows: list[dict[str, Any]] = [
            {
                "name": model.name,
                "dimensions": model.dimensions,
                "provider": model.provider,
                "index": model.index_kind,
                "languages": model.languages,
                "active_for": [n for n, used in active.items() if used and used.name == model.name],
                "previous_for": [name for name, was in previous.items() if was == model.name],
                "coverage": {each.name: _coverage(work, each, model.name) for each in corpora},
            }
            for model in work.models.list_models()
        ]
    if as_json:
        print_json(rows)
        return
    table(
        "Embedding models",
        [
            *("name", "dimensions", "provider", "index", "languages", "active for"),
            *(f"in {n}" for n in names),
        ],
        [
            (
                row["name"],
                row["dimensions"],
                row["provider"],
                row["index"],
                "all" if row["languages"] is None else ", ".join(row["languages"]),
                ", ".join(row["active_for"]),
                *(
                    "not shown" if done is None else f"{done['embedded']} of {done['total']}"
                    for done in row["coverage"].values()
                ),
            )
            for row in rows
        ],
    )


def _coverage(work: UnitOfWork, corpus: Corpus, model: str) -> dict[str, int] | None:
    """Count a corpus's passages with vectors; None where the login does not see its scopes."""
    from pgcorpus.db.errors import NotPermitted
    from pgcorpus.services.embedding.embed import count_covered

    try:
        return vars(count_covered(work, corpus, model))
    except NotPermitted:
        return None


@models.command("add")
def add_model(
    name: Annotated[
        str,
        typer.Argument(
            callback=model_name,
            help="The provider's name for it: letters, digits and . _ : / -",
        ),
    ],
    dimensions: Annotated[int, typer.Option(min=1, max=16_000, help="Length of its vectors.")],
    provider: Annotated[str, typer.Option(help=f"One of {', '.join(PROVIDERS)}.")],
    index: Annotated[
        IndexKind | None,
        typer.Option(
            help="halfvec: half-precision numbers. binary: one bit per dimension, a sixteenth of "
            f"the space. By default halfvec, and binary above {HALFVEC_MAX_DIMENSIONS} dimensions.",
            show_default=False,
        ),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            metavar="NAME",
            callback=check_languages,
            help="A text search configuration that it knows, such as english; can be repeated. "
            "Questions in others weigh its leg less. By default it knows all.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register a model and make its index, beside running work.

    Stopped or killed, the same command goes on, and builds an index anew that was left invalid.

    Example: pgcorpus models add my-model --dimensions 768 --provider openai
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.switch import ModelSwitch

    if provider not in PROVIDERS:
        raise typer.BadParameter(f"known: {', '.join(PROVIDERS)}", param_hint="--provider")
    if index == "halfvec" and dimensions > HALFVEC_MAX_DIMENSIONS:
        raise typer.BadParameter(
            f"halfvec holds at most {HALFVEC_MAX_DIMENSIONS} dimensions; use binary",
            param_hint="--index",
        )
    with _bar("making the index") as bar:
        model = ModelSwitch(Database.from_env()).add(
            name,
            dimensions=dimensions,
            provider=provider,
            index_kind=index,
            languages=language or None,
            on_build=bar.build,
        )
    if as_json:
        added = {"name": name, "dimensions": dimensions, "provider": provider}
        print_json(added | {"languages": model.languages})
        return
    if model.index_kind == "binary" and index is None:
        say(f"its index is binary: halfvec holds at most {HALFVEC_MAX_DIMENSIONS} dimensions")
    say(f"added; make vectors with: pgcorpus models backfill {name}")


@models.command("backfill")
def backfill(name: Model, corpus: Among = None, as_json: AsJson = False) -> None:
    """Make the vectors a model lacks or that are of older texts, and its index if need be.

    Searches go on with the model they have. Stopped or killed, the same command goes on where it
    was. Where a model has no vectors yet, its index is built after them, which is faster.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.switch import ModelSwitch

    with _bar("embedding") as bar:
        done = ModelSwitch(Database.from_env()).backfill(
            name,
            among=corpus or (),
            on_start=lambda of, total: bar.start(f"embedding {of}", total),
            on_progress=bar.advance,
            on_build=bar.build,
        )
    if as_json:
        print_json({"model": name, "corpora": [each.as_json() for each in done]})
    else:
        for each in done:
            report = each.report
            say(
                f"{report.corpus}: {report.embedded} embedded with {name} ({report.stale} of them "
                f"anew), {report.failed} failed, {report.duration_s:.1f} s; index {each.index}"
            )
        say(f"check it with: pgcorpus models verify {name}" if done else "there are no passages")
    for each in done:
        for key, reason in each.report.failures[:MAX_SHOWN_FAILURES]:
            fail(f"{each.report.corpus}: {key}: {reason}")
    if any(each.report.failed for each in done):
        raise typer.Exit(1)


@models.command("verify")
def verify(
    name: Model,
    corpus: Among = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Saved questions, one per line. Without, the beginnings of 100 passages stand in: "
            "searches are logged without what was asked.",
        ),
    ] = None,
    least_recall: Annotated[
        float, typer.Option(min=0, max=1, help="Fail when recall@10 is below.")
    ] = LEAST_RECALL,
    as_json: AsJson = False,
) -> None:
    """Check that a model is fit to be used: whole, indexed, and finding what it should.

    Coverage: every passage has a vector of its present text. Recall@10: the share of the ten best
    hits of an exact scan that a search with the model's index finds. Overlap@10: the share of the
    ten best hits of the model in use that are among the model's own; it tells how much answers will
    change, and does not fail. The exit code is 1 when anything must be mended.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.verify import ModelVerifier

    asked = _read_questions(questions)
    with _bar("asking") as bar:
        found = ModelVerifier(Database.from_env()).verify(
            name,
            among=corpus or (),
            questions=asked,
            least_recall=least_recall,
            on_start=lambda of, total: bar.start(f"asking {of}", total),
            on_progress=bar.advance,
        )
    passed = not any(each.problems for each in found)
    if as_json:
        corpora = [each.as_json() for each in found]
        print_json({"model": name, "passed": passed, "corpora": corpora})
    else:
        _show_verification(name, found)
    for each in found:
        for problem in each.problems:
            fail(f"{each.corpus}: {problem}")
    if not passed:
        raise typer.Exit(1)


@models.command("use")
def use_model(corpus: OfCorpus, name: Model, force: Force = False, as_json: AsJson = False) -> None:
    """Make searches of a corpus use a model, from the next one on.

    Refused, with nothing changed, while a passage lacks its vector or the index is not usable;
    --force takes the model as it is. The model before is kept: pgcorpus models rollback CORPUS.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.switch import ModelSwitch

    _show_switch(ModelSwitch(Database.from_env()).use(corpus, name, force=force), as_json)


@models.command("rollback")
def rollback(corpus: OfCorpus, as_json: AsJson = False) -> None:
    """Make searches of a corpus use the model before; a second rollback undoes the first.

    It is done whatever that model lacks by now; a warning on stderr says how much.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.switch import ModelSwitch

    _show_switch(ModelSwitch(Database.from_env()).rollback(corpus), as_json)


@models.command("drop")
def drop(
    name: Model,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Do not wait for searches that began before the last switch: they may find "
            "nothing.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a model with its vectors and indexes.

    Refused while searches use it. A model that was in use until lately is dropped when the searches
    that began with it have ended. Of a model that came with the schema only the vectors are
    deleted. Stopped or killed, the same command goes on.
    """
    from pgcorpus.db.engine import Database
    from pgcorpus.services.ops.switch import GRACE_SECONDS, ModelSwitch

    switch = ModelSwitch(Database.from_env())
    vectors = switch.count_droppable(name)
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is no terminal to ask; give --yes", param_hint="--yes")
        typer.confirm(
            f"Delete {name} with its {count_of(vectors, 'vector')}?", abort=True, err=True
        )
    with _bar("dropping") as bar:
        dropped = switch.drop(
            name,
            grace_seconds=0 if force else GRACE_SECONDS,
            on_wait=bar.wait,
            on_start=lambda total: bar.start("deleting vectors", total),
            on_progress=bar.advance,
        )
    if as_json:
        print_json(asdict(dropped))
    elif dropped.registered:
        deleted = count_of(dropped.vectors, "vector")
        say(f"{deleted} deleted; {name} came with the schema and stays registered")
    else:
        say(f"{name} dropped, with {count_of(dropped.vectors, 'vector')}")


class _Bar:
    """A progress bar for work of several parts, with rate and time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.task_ids[0]
        self._what = progress.tasks[0].description

    def start(self, what: str, total: int) -> None:
        """Begin a part."""
        self._what = what
        self._progress.reset(self._task, total=total or 1, completed=not total, description=what)
        self._progress.start()

    def advance(self, count: int) -> None:
        """Advance the present part."""
        self._progress.advance(self._task, count)
        if rate := self._progress.tasks[0].speed:
            self._progress.update(self._task, description=f"{self._what}, {rate:.0f}/s")

    def build(self, corpus: str, phase: str, share: float) -> None:
        """Show an index build."""
        what = f"index of {corpus}: {phase}"
        self._progress.update(self._task, total=1, completed=share, description=what)

    def wait(self, seconds: float) -> None:
        """Show the logins that the work waits for."""
        what = f"waiting {seconds:.0f} s for searches that began with it"
        self._progress.update(self._task, description=what)


@contextmanager
def _bar(what: str) -> Iterator[_Bar]:
    with progress_bar(what) as progress:
        yield _Bar(progress)


def _read_questions(file: Path | None) -> list[str]:
    """Return the lines of a file that are not empty."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file}: {error}", param_hint="--questions") from error
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise typer.BadParameter(f"{file} holds no question", param_hint="--questions")
    return questions


def _show_verification(name: str, found: list[Verification]) -> None:
    table(
        f"{name}",
        ["corpus", "embedded", "missing", "stale", "index", "recall@10", "overlap@10", "questions"],
        [
            (
                each.corpus,
                f"{each.coverage.embedded} of {each.coverage.total}",
                each.coverage.missing,
                each.coverage.stale,
                f"{each.index_kind}, {each.index}",
                "-" if each.recall is None else f"{each.recall:.3f}",
                "-" if each.overlap is None else f"{each.overlap:.3f} with {each.compared_with}",
                each.questions,
            )
            for each in found
        ],
    )
    if any(each.questions_from == "passages" for each in found):
        say(
            "no saved questions were given (--questions FILE), and searches are logged without "
            "what was asked: the beginnings of passages stood in"
        )
    if not found:
        say("there are no passages")


def _show_switch(switch: Switch, as_json: bool) -> None:
    covered = switch.coverage
    if as_json:
        print_json(switch.as_json())
    else:
        say(f"{switch.corpus} uses {switch.model}")
    if lacking := covered.total - covered.embedded:
        warn(
            f"{lacking} of {covered.total} passages lack an up-to-date vector of {switch.model}; "
            f"make them with: pgcorpus models backfill {switch.model} --corpus {switch.corpus}"
        )
