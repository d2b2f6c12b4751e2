"""The comparison of a restored database with what the backup says it holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pgcorpus.db import migrations
from pgcorpus.db.engine import Database
from pgcorpus.db.errors import BackupDamaged, DataLayerError
from pgcorpus.db.search.corpora import list_corpora
from pgcorpus.services.audit import AuditService
from pgcorpus.services.audit import Remembered as Seal
from pgcorpus.services.ops.backup.create import PROBES, ask, find_drift, fingerprint_all, reading
from pgcorpus.services.ops.backup.manifest import QUESTIONS, Manifest
from pgcorpus.services.ops.backup.restore import restore_for_a_while
from pgcorpus.services.ops.backup.store import Backup, Progress

LEAST_SAME_HITS: Final = 0.9
"""Share of hits of the saved searches that must be found again. They are ranked by the statistics
of ANALYZE, which draws a sample, and the passages may change between snapshot and question."""

MOST_SHOWN: Final = 10

MAINTAIN_MAJOR: Final = 17
"""PostgreSQL that was first to know this right, which an owner has by itself there."""


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: What was compared.
        compared: How many of them.
        differences: Sentences; empty if there are none.
    """

    name: str
    compared: int
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """The comparison of a restored database with its backup.

    Attributes:
        backup: Name of the backup.
        database: Name of the database it was restored into.
        checks: The comparisons.
    """

    backup: str
    database: str
    checks: tuple[Check, ...]

    @property
    def is_same(self) -> bool:
        """True if no difference was found."""
        return not any(each.differences for each in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as the command line prints it."""
        return {
            "backup": self.backup,
            "database": self.database,
            "passed": self.is_same,
            "checks": [asdict(each) for each in self.checks],
        }


def verify(
    database: Database,
    backup: Backup,
    key: str | None,
    progress: Progress,
    *,
    into: str | None = None,
) -> Verification:
    """Restore a backup into a database of its own, compare that with the backup, and drop it.

    A backup that passes is noted as verified in the log of the database.

    Args:
        database: The database whose backup it is, or another one of a server.
        backup: What is verified.
        key: The secret that it is encrypted with, or None.
        progress: Told how far it is.
        into: An empty database that is there, and is emptied again; None to make one.

    Raises:
        BackupDamaged: A file is not as it was made.
        NotRestored: It cannot be restored here; see ``restore``.
        NotPermitted: As above.
        ProgramFailed: As above.
    """
    with restore_for_a_while(database, backup, key, into, progress) as restored:
        found = compare(restored, backup, key, progress)
    note(database, found)
    return found


def note(database: Database, found: Verification) -> None:
    """Note in the log of a database that a backup passed."""
    if found.is_same:
        with database.unit_of_work() as work:
            work.backups.note_verified(found.backup)
            work.commit()


def compare(
    restored: Database, backup: Backup, key: str | None, progress: Progress
) -> Verification:
    """Compare a restored database with what its backup says it holds."""
    held = backup.manifest
    saved = _read_questions(backup, key)
    with reading(restored, as_found=True) as work:
        nearest = {
            corpus.name: work.backups.list_nearest(corpus, probes=PROBES)
            for corpus in list_corpora()
        }
        work.backups.write_alike()
        tables = fingerprint_all(work, progress)
        sequences = work.backups.list_sequences()
        indexes = work.backups.list_indexes()
        grants = [
            each
            for each in work.backups.list_grants()
            if held.server_major >= MAINTAIN_MAJOR or not each.startswith("MAINTAIN ")
        ]
        row_security = work.backups.list_row_security()
    rows = {name: each.rows for name, each in tables.items()}
    checksums = {name: each.checksum for name, each in tables.items()}
    checks = [
        _compare("rows of tables", {n: e.rows for n, e in held.tables.items()}, rows),
        _compare("checksums of tables", {n: e.checksum for n, e in held.tables.items()}, checksums),
        _compare_sequences(held.sequences, sequences),
        _compare_indexes(held.indexes, indexes),
        _compare_lines("grants", held.grants, grants),
        _compare_lines("row security", held.row_security, row_security),
        _check_revision(restored, held),
        _check_audit(restored, held),
        _compare("nearest vectors", _flatten(saved["nearest"]), _flatten(nearest)),
        _check_searches(restored, saved["asked"]),
    ]
    assert restored.url.database is not None  # noqa: S101 - it was named
    return Verification(backup.name, restored.url.database, tuple(checks))


def _read_questions(backup: Backup, key: str | None) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads(b"".join(backup.read(QUESTIONS, key)))
    except ValueError as error:
        raise BackupDamaged(f"{backup.name}/{QUESTIONS} cannot be read: {error}") from error
    return saved


def _compare(name: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Check:
    differences = [
        f"{key}: {found.get(key, 'missing')} instead of {expected.get(key, 'nothing')}"
        for key in sorted(expected.keys() | found.keys())
        if key not in expected or key not in found or expected[key] != found[key]
    ]
    return Check(name, len(expected), _shorten(differences))


def _compare_lines(name: str, expected: Sequence[str], found: Sequence[str]) -> Check:
    missing, more = set(expected) - set(found), set(found) - set(expected)
    differences = [
        *(f"missing: {each}" for each in sorted(missing)),
        *(f"not in the backup: {each}" for each in sorted(more)),
    ]
    return Check(name, len(expected), _shorten(differences))


def _compare_sequences(expected: Mapping[str, int], found: Mapping[str, int]) -> Check:
    """Compare sequences, which go on while a backup is made: no number may come twice."""
    differences = [
        f"{name}: {found.get(name, 'missing')}, but {last} was given out"
        for name, last in expected.items()
        if found.get(name, -1) < last
    ]
    return Check("sequences", len(expected), _shorten(differences))


def _compare_indexes(expected: Sequence[str], found: Mapping[str, bool]) -> Check:
    differences = [f"missing: {each}" for each in expected if each not in found]
    differences += [f"not valid: {name}" for name, valid in found.items() if not valid]
    return Check("indexes", len(expected), _shorten(differences))


def _check_revision(restored: Database, held: Manifest) -> Check:
    found = migrations.current(restored)
    revision = found and found.revision
    wrong = [] if revision == held.revision else [f"{revision} instead of {held.revision}"]
    wrong += sorted(set(find_drift(restored)) - set(held.drift))
    return Check("schema", 1, _shorten(wrong))


def _check_audit(restored: Database, held: Manifest) -> Check:
    """Verify the chain of seals of the audit log, up to the newest that the backup saw."""
    seal = None if held.last_seal is None else Seal(*held.last_seal)
    found = AuditService(restored).verify(remembered=seal)
    return Check("audit log", found.seals, _shorten([each.detail for each in found.tampering]))


def _check_searches(restored: Database, asked: Mapping[str, Mapping[str, Sequence[str]]]) -> Check:
    """Ask the saved questions again, and compare the ten best hits."""
    same = total = 0
    differences: list[str] = []
    questions = 0
    for corpus in list_corpora():
        for question, hits in asked.get(corpus.name, {}).items():
            questions += 1
            try:
                found = ask(restored, corpus, question)
            except DataLayerError as error:
                differences.append(f"{corpus.name}, {question!r}: {error}")
                continue
            total += len(hits)
            kept = len(set(hits) & set(found))
            same += kept
            if kept < len(hits):
                differences.append(
                    f"{corpus.name}, {question!r}: {kept} of {len(hits)} hits were found again"
                )
    passed = all("hits were found again" in each for each in differences)
    if passed and same >= LEAST_SAME_HITS * total:
        differences = []
    return Check("ten best hits", questions, _shorten(differences))


def _flatten(nested: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    return {
        f"{corpus} {probe}": list(near)
        for corpus, probes in nested.items()
        for probe, near in probes.items()
    }


def _shorten(differences: Iterable[str]) -> tuple[str, ...]:
    found = list(differences)
    more = len(found) - MOST_SHOWN
    return (*found[:MOST_SHOWN], *([f"and {more} more"] if more > 0 else []))
