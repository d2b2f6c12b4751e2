"""The service of the audit log: sealing, verification and retention.

docs/explanation/audit.md says what a seal proves, and what it does not.
"""

from __future__ import annotations

import hmac
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, NamedTuple

from pgcorpus.db.engine import Database
from pgcorpus.db.errors import LogNotSealed, LogTampered, TransactionConflict
from pgcorpus.db.models.audit import AuditSeal
from pgcorpus.db.repositories.operations.audit import Digest, Partition, StoredSeal
from pgcorpus.db.uow import UnitOfWork

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Kind = Literal[
    "entries_missing",
    "entries_added",
    "entries_changed",
    "month_missing",
    "seal_missing",
    "seal_changed",
    "signature_missing",
    "signature_invalid",
    "signature_former",
    "not_as_remembered",
]

SignatureState = Literal["checked", "unchecked", "none"]

RETENTION: Final = "retention"

UNSIGNED: Final = (
    "was made without PGCORPUS_AUDIT_KEY; if pgcorpus audit verify finds nothing else, sign from "
    "here on with: pgcorpus audit seal --trust-unsigned"
)


REPLACED: Final = (
    "is the last, and was signed with a former key; sign on with the present one, as soon as there "
    "is an entry to seal: pgcorpus audit seal"
)


class Remembered(NamedTuple):
    """A seal that is kept outside of the database.

    Attributes:
        number: Which.
        hash: Its hash, in hexadecimal.
    """

    number: int
    hash: str


@dataclass(frozen=True)
class Tampering:
    """An entry or seal that is not as it was sealed.

    Attributes:
        kind: Stable, for scripts.
        detail: What, where and when, for people.
        seal: Number of the seal that it breaks, or None.
        month: Of the entries, as ``2026-11``, or None where it is a seal that was touched.
    """

    kind: Kind
    detail: str
    seal: int | None = None
    month: str | None = None


@dataclass(frozen=True)
class DroppedMonth:
    """A month of entries that retention has dropped.

    Attributes:
        month: As ``2026-11``.
        rows: How many there were.
        dropped_by: The login that did it.
        dropped_at: When.
    """

    month: str
    rows: int
    dropped_by: str
    dropped_at: datetime


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of verifying the log against its seals.

    Attributes:
        seals: How many there are.
        sealed: Entries that a seal covers.
        unsealed: Entries that none covers yet: about them nothing can be said.
        signatures: Whether they were checked, could not be for want of the key, or there are none.
        last_seal: Number and hash of the newest seal, to be remembered elsewhere; None before it.
        dropped: Months that retention has dropped.
        tampering: What is wrong, the seals first.
    """

    seals: int
    sealed: int
    unsealed: int
    signatures: SignatureState
    last_seal: Remembered | None
    dropped: tuple[DroppedMonth, ...]
    tampering: tuple[Tampering, ...]

    @property
    def intact(self) -> bool:
        """True if no tampering was found."""
        return not self.tampering

    def as_json(self) -> dict[str, Any]:
        """Return the verification as the command line prints it."""
        return {
            "intact": self.intact,
            "seals": self.seals,
            "sealed": self.sealed,
            "unsealed": self.unsealed,
            "signatures": self.signatures,
            "last_seal": self.last_seal and self.last_seal._asdict(),
            "dropped": [asdict(each) for each in self.dropped],
            "tampering": [asdict(each) for each in self.tampering],
        }


class AuditService:
    """Seals and verifies the log, and drops its oldest months.

    Args:
        database: Whose log. Its settings have the key of the signatures, if there is one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        key = database.settings.audit_key
        self._key = None if key is None else key.encode()
        self._former_keys = [each.encode() for each in database.settings.audit_former_keys]

    def maintain(self) -> None:
        """Make partitions ahead, check the roles, and seal.

        Raises:
            NotPermitted: The login is no member of rag_admin.
            LogTampered: As for ``seal``.
            LogNotSealed: As for ``seal``.
        """
        with self._database.unit_of_work() as work:
            made = work.audit.make_partitions()
            work.audit.record_roles()
            work.commit()
        if made:
            logger.info("partitions of the audit log were made: %s", ", ".join(made))
        # In a log file elsewhere the hash of a seal proves what was sealed, even against the owner
        # of the database.
        if sealed := self.seal():
            logger.info(
                "seals of the audit log: %d, the last %d:%s",
                len(sealed), sealed[-1].number, sealed[-1].hash.hex(),
            )  # fmt: skip

    def seal(self, *, trust_unsigned: bool = False) -> Sequence[AuditSeal]:
        """Seal the entries of all transactions that have ended, and sign the seals with the key.

        Args:
            trust_unsigned: Begin to sign though the seals before were made without the key.

        Returns:
            The seals that were made.

        Raises:
            LogTampered: The signature of the last seal is not of this key.
            LogNotSealed: There is a key, and the last seal was made without.
            NotPermitted: The login is no member of rag_admin.
        """
        with self._database.unit_of_work() as work:
            last = work.audit.find_last_seal()
            self._refuse_forged(last, trust_unsigned=trust_unsigned)
            made = work.audit.seal()
            if made and made[0].previous != (last and last.hash):
                raise TransactionConflict(
                    "another process has just sealed the audit log; run it again"
                )
            for seal in made or ([last] if last is not None and trust_unsigned else []):
                self._sign(work, seal)
            work.commit()
        return made

    def verify(
        self, *, remembered: Remembered | None = None, progress: Progress | None = None
    ) -> Verification:
        """Read the whole log, and compare it with its seals.

        Args:
            remembered: A seal that must be there as it was.
            progress: Called with the number of partitions read, and of all.

        Raises:
            NotPermitted: The login may not read the log.
        """
        with self._database.unit_of_work() as work:
            work.audit.begin_verification()
            stored = work.audit.list_seals()
            partitions = work.audit.list_partitions()
            found: dict[tuple[int | None, str], Digest] = {}
            for done, partition in enumerate(partitions):
                if progress is not None:
                    progress(done, len(partitions))
                found |= {(each.seal, each.month): each for each in work.audit.digest(partition)}
            if progress is not None:
                progress(len(partitions), len(partitions))
        seals = [each.seal for each in stored]
        tampering = [*_find_broken_seals(stored), *self._signatures(seals)]
        if remembered is not None:
            tampering += _find_forgotten(seals, remembered)
        return Verification(
            seals=len(seals),
            sealed=sum(each.rows for (seal, _), each in found.items() if seal is not None),
            unsealed=sum(each.rows for (seal, _), each in found.items() if seal is None),
            signatures=self._state_of_signatures(seals),
            last_seal=Remembered(seals[-1].number, seals[-1].hash.hex()) if seals else None,
            dropped=tuple(_list_dropped(seals)),
            tampering=(*tampering, *_find_touched(seals, found)),
        )

    def verify_chain(self) -> list[Tampering]:
        """List the seals that are gone or changed. The entries under them are not read.

        Raises:
            NotPermitted: The login may not read the log.
        """
        with self._database.unit_of_work() as work:
            stored = work.audit.list_seals()
        return [*_find_broken_seals(stored), *self._signatures([each.seal for each in stored])]

    def list_droppable(self, months: int) -> dict[date, Partition]:
        """Return the partitions that retention would drop, by the first day of their month.

        Args:
            months: How many are kept beside the current one.
        """
        today = datetime.now(UTC)
        oldest = today.year * 12 + today.month - 1 - months
        kept = date(oldest // 12, oldest % 12 + 1, 1)
        with self._database.unit_of_work() as work:
            partitions = work.audit.list_partitions()
        return {each.month: each for each in partitions if each.month and each.month < kept}

    def retain(self, months: int, progress: Progress | None = None) -> list[DroppedMonth]:
        """Drop the months older than a number. The log is verified before, and must be sealed.

        Args:
            months: How many are kept beside the current one.
            progress: As for ``verify``.

        Raises:
            LogTampered: It is not as it was sealed: evidence is not dropped.
            LogNotSealed: Some of what would be dropped is not sealed, or cannot be signed.
            NotPermitted: The login does not own the log.
        """
        droppable = self.list_droppable(months)
        if not droppable:
            return []
        if not self.verify(progress=progress).intact:
            raise LogTampered
        dropped: list[DroppedMonth] = []
        for month, partition in droppable.items():
            with self._database.unit_of_work() as work:
                self._refuse_forged(work.audit.find_last_seal())
                if any(each.seal is None for each in work.audit.digest(partition)):
                    raise LogNotSealed(
                        f"{partition.name} has entries that are not sealed; do it with: "
                        "pgcorpus audit seal"
                    )
                seal = work.audit.drop_month(month)
                self._sign(work, seal)
                work.commit()
            dropped += _list_dropped([seal])
        return dropped

    def _sign(self, work: UnitOfWork, seal: AuditSeal) -> None:
        if (signature := self._signature(seal)) is not None:
            work.audit.sign(seal.number, signature)

    def _signature(self, seal: AuditSeal) -> bytes | None:
        return None if self._key is None else hmac.digest(self._key, seal.hash, "sha256")

    def _find_signer(self, seal: AuditSeal) -> int | None:
        """Find the key that signed a seal: 0 is the present one, then the former ones in order."""
        if self._key is None or seal.signature is None:
            return None
        for number, key in enumerate((self._key, *self._former_keys)):
            if hmac.compare_digest(hmac.digest(key, seal.hash, "sha256"), seal.signature):
                return number
        return None

    def _is_forged(self, seal: AuditSeal) -> bool:
        """Return whether a seal has a signature that none of the keys makes."""
        return bool(self._key and seal.signature) and self._find_signer(seal) is None

    def _refuse_forged(self, last: AuditSeal | None, *, trust_unsigned: bool = False) -> None:
        """Raise rather than sign a chain that another may have made."""
        if self._key is None or last is None:
            return
        if self._is_forged(last):
            raise LogTampered(
                f"the signature of seal {last.number} is not of this PGCORPUS_AUDIT_KEY; see: "
                "pgcorpus audit verify"
            )
        if last.signature is None and not trust_unsigned:
            raise LogNotSealed(f"seal {last.number} {UNSIGNED}")

    def _state_of_signatures(self, seals: Sequence[AuditSeal]) -> SignatureState:
        if self._key is not None:
            return "checked"
        return "unchecked" if any(seal.signature is not None for seal in seals) else "none"

    def _signatures(self, seals: Sequence[AuditSeal]) -> Iterator[Tampering]:
        """Yield the seals with a wrong signature, and the last if it has none.

        It stands for all before it.
        """
        if self._key is None or not seals:
            return
        last = seals[-1]
        oldest = len(self._former_keys)  # of the keys that may sign from here on
        for seal in seals:
            signer = self._find_signer(seal)
            if seal.signature is None:
                continue
            if signer is None:
                detail = f"seal {seal.number} was not signed with this PGCORPUS_AUDIT_KEY"
                yield Tampering("signature_invalid", detail, seal.number)
            elif signer > oldest:
                detail = f"seal {seal.number} was signed with a key that had been replaced"
                yield Tampering("signature_invalid", detail, seal.number)
            else:
                oldest = signer
        if last.signature is None:
            yield Tampering("signature_missing", f"seal {last.number} {UNSIGNED}", last.number)
        elif self._find_signer(last):
            yield Tampering("signature_former", f"seal {last.number} {REPLACED}", last.number)


def _find_broken_seals(stored: Sequence[StoredSeal]) -> Iterator[Tampering]:
    """Yield the seals that are gone, or are not as they were made."""
    before: StoredSeal | None = None
    for each in stored:
        number = each.seal.number
        expected = 1 if before is None else before.seal.number + 1
        if number != expected:
            gone = f"seal {expected}" if number == expected + 1 else f"{expected} to {number - 1}"
            yield Tampering("seal_missing", f"{gone} removed", expected)
        elif each.seal.previous != (before and before.seal.hash):
            detail = f"seal {number} was not made after seal {expected - 1} as that is now"
            yield Tampering("seal_changed", detail, number)
        if each.seal.hash != each.computed:
            yield Tampering("seal_changed", f"seal {number} is not as it was made", number)
        before = each


def _find_forgotten(seals: Sequence[AuditSeal], remembered: Remembered) -> list[Tampering]:
    """List the remembered seals that are not there with that hash."""
    now = {seal.number: seal.hash.hex() for seal in seals}.get(remembered.number)
    if now == remembered.hash:
        return []
    detail = "is gone" if now is None else f"has the hash {now}"
    return [
        Tampering(
            "not_as_remembered",
            f"seal {remembered.number} {detail}; remembered is {remembered.hash}",
            remembered.number,
        )
    ]


def _list_dropped(seals: Sequence[AuditSeal]) -> Iterator[DroppedMonth]:
    for seal in seals:
        if seal.kind == RETENTION:
            for month, of in seal.months.items():
                yield DroppedMonth(month, of["rows"], seal.sealed_by, seal.sealed_at)


def _find_touched(
    seals: Sequence[AuditSeal], found: Mapping[tuple[int | None, str], Digest]
) -> Iterator[Tampering]:
    """Yield the entries that are not as they were sealed, by month and seal."""
    sealed = {
        (seal.number, month): of
        for seal in seals
        if seal.kind != RETENTION
        for month, of in seal.months.items()
    }
    dropped = {
        month: seal.number for seal in seals if seal.kind == RETENTION for month in seal.months
    }
    standing = {
        (number, month): of
        for (number, month), of in sealed.items()
        if number > dropped.get(month, 0)
    }
    there = {key: each for key, each in found.items() if each.seal is not None}
    remaining = {month for _, month in there}
    lost: Counter[str] = Counter()
    for (number, month), of in standing.items():
        if month not in remaining:
            lost[month] += of["rows"]
        else:
            yield from _compare(number, month, of, there.get((number, month)))
    for month, rows in sorted(lost.items()):
        detail = f"{month}: all {rows} sealed entries are gone, and no retention dropped them"
        yield Tampering("month_missing", detail, month=month)
    for key, each in there.items():
        if key not in standing:
            where = "of a month that was dropped" if key in sealed else "that were not there"
            yield Tampering(
                "entries_added",
                f"{_place(each)}: {each.rows} entries {where} when seal {each.seal} was made",
                each.seal,
                each.month,
            )


def _compare(
    number: int, month: str, of: Mapping[str, Any], found: Digest | None
) -> Iterator[Tampering]:
    if found is None:
        detail = f"{month}: all {of['rows']} entries under seal {number} are gone"
        yield Tampering("entries_missing", detail, number, month)
    elif found.sha256 != of["sha256"]:
        more = found.rows - of["rows"]
        kind: Kind = (
            "entries_added" if more > 0 else "entries_missing" if more else "entries_changed"
        )
        what = {
            "entries_added": f"{more} more than were sealed",
            "entries_missing": f"{-more} fewer than were sealed",
            "entries_changed": "not as they were sealed",
        }[kind]
        detail = f"{_place(found)}: {found.rows} entries under seal {number}, {what}"
        yield Tampering(kind, detail, number, month)


def _place(found: Digest) -> str:
    """Describe where entries are, and when they were written."""
    times = f"{found.earliest:%Y-%m-%d %H:%M:%S} to {found.latest:%Y-%m-%d %H:%M:%S}"
    return f"{found.month}, positions {found.first_position} to {found.last_position}, {times}"
