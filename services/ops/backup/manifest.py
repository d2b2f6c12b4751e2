"""The manifest of a backup: what it holds, by which it is known to be whole and unchanged."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final, Self

from pgcorpus.db.errors import BackupDamaged
from pgcorpus.db.repositories.operations.backups import Fingerprint
from pgcorpus.services.ops.backup.encryption import authenticate

FORMAT: Final = "pgcorpus backup 1"
NAME: Final = "manifest.json"
DUMP: Final = "database.dump"
SCHEMA: Final = "schema.sql"
QUESTIONS: Final = "questions.json"
MOST_BYTES: Final = 64 << 20
"""A manifest that is longer is none of ours: it is read whole."""


@dataclass(frozen=True)
class File:
    """A file of a backup.

    Attributes:
        bytes: Its size.
        sha256: Of its bytes as they are on disk, in hex digits.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a backup.

    Attributes:
        created_at: Time of the snapshot, in UTC.
        version: Release of pgcorpus.
        revision: Newest revision of the schema, or None for an empty database.
        drift: Differences between schema and models, a sentence each.
        server: Version of the server.
        server_major: Its major version.
        program: Major version of the pg_dump that made it.
        database: Name of the database.
        encoding: Its encoding.
        collate: Its LC_COLLATE.
        ctype: Its LC_CTYPE.
        extensions: Name → version.
        roles: Roles that own something in it or have a right; they must be there to restore it.
        owners: Those that own something.
        database_rights: Role and right on the database itself, which a dump does not have.
        encrypted: Whether the files beside this one are encrypted.
        tables: Schema and name → rows and checksum.
        sequences: Name → last number given.
        indexes: Their names.
        grants: Rights, a line each.
        row_security: Tables with row security and their policies, a line each.
        last_seal: Number and hash of the newest seal of the audit log, or None.
        files: Name → size and SHA-256.
    """

    created_at: datetime
    version: str
    revision: str | None
    drift: Sequence[str]
    server: str
    server_major: int
    program: int
    database: str
    encoding: str
    collate: str
    ctype: str
    extensions: Mapping[str, str]
    roles: Sequence[str]
    owners: Sequence[str]
    database_rights: Sequence[tuple[str, str]]
    encrypted: bool
    tables: Mapping[str, Fingerprint]
    sequences: Mapping[str, int]
    indexes: Sequence[str]
    grants: Sequence[str]
    row_security: Sequence[str]
    last_seal: tuple[int, str] | None
    files: Mapping[str, File] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows of all tables."""
        return sum(each.rows for each in self.tables.values())

    @property
    def size_bytes(self) -> int:
        """The size of all files, the manifest aside."""
        return sum(each.bytes for each in self.files.values())

    def write(self, key: str | None) -> bytes:
        """Return it as JSON, authenticated by the key that encrypts the files."""
        content = asdict(self) | {
            "format": FORMAT,
            "created_at": self.created_at.isoformat(),
            "tables": {name: each._asdict() for name, each in self.tables.items()},
        }
        if key is not None:
            content["authentication"] = authenticate(_canonical(content), key)
        return json.dumps(content, indent=1, sort_keys=True).encode()

    @classmethod
    def read(cls, written: bytes, key: str | None, name: str) -> Self:
        """Read one.

        Args:
            written: JSON, as ``write`` made it.
            key: The key that encrypts the files; without one an encrypted backup is listed, and
                not opened.
            name: Of the backup, for messages.

        Raises:
            BackupDamaged: It is none, or not as it was written.
        """
        try:
            content: dict[str, Any] = json.loads(written)
            if content.pop("format") != FORMAT:
                raise BackupDamaged(
                    f"{name} was not made by this release: its manifest is not of the format "
                    f"{FORMAT!r}"
                )
            authentication = content.pop("authentication", None)
            if content["encrypted"] and key is not None:
                expected = authenticate(_canonical({**content, "format": FORMAT}), key)
                if not hmac.compare_digest(str(authentication), expected):
                    raise BackupDamaged(
                        f"the manifest of {name} was changed, or the backup was not made with "
                        "this BACKUP_KEY"
                    )
            seal = content["last_seal"]
            return cls(
                **content
                | {
                    "created_at": datetime.fromisoformat(content["created_at"]),
                    "tables": {
                        table: Fingerprint(int(each["rows"]), str(each["checksum"]))
                        for table, each in content["tables"].items()
                    },
                    "files": {
                        file: File(int(each["bytes"]), str(each["sha256"]))
                        for file, each in content["files"].items()
                    },
                    "last_seal": None if seal is None else (int(seal[0]), str(seal[1])),
                    "database_rights": [(str(a), str(b)) for a, b in content["database_rights"]],
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupDamaged(f"{name} has no readable manifest: {error}") from error


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
