"""The encryption of a file in chunks, so that a part of one can neither be changed nor cut off.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, "Online authenticated-encryption
and its nonce-reuse misuse-resistance", 2015) with AES-256-GCM: the nonce of a chunk counts it, and
says whether it is the last. A file has a key of its own, from BACKUP_KEY and its salt.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Final, Protocol

from pgcorpus.db.errors import BackupDamaged, SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC: Final = b"pgcorpus encrypted 1\n"
SALT_BYTES: Final = 32
CHUNK_BYTES: Final = 1 << 20
TAG_BYTES: Final = 16
COUNTER_BYTES: Final = 11  # with the flag of the last chunk the 12 bytes of a nonce


def require_cryptography() -> None:
    """Raise unless the library is installed that encrypts.

    Raises:
        SettingsError: It is not.
    """
    if find_spec("cryptography") is None:
        raise SettingsError(
            "BACKUP_KEY is set, and backups are encrypted by a library that is not installed; "
            "install it with: pip install 'pgcorpus[encryption]'"
        )


class Output(Protocol):
    """Takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Write some bytes."""


class EncryptingWriter:
    """Writes a file that only the key reads.

    Args:
        file: Has ``write``; it is not closed.
        key: The secret, ``BACKUP_KEY``.
    """

    def __init__(self, file: Output, key: str) -> None:
        self._file = file
        salt = secrets.token_bytes(SALT_BYTES)
        self._cipher = _cipher(key, salt)
        self._header = MAGIC + salt
        self._buffer = bytearray()
        self._counter = 0
        file.write(self._header)

    def write(self, data: bytes) -> None:
        """Write some bytes."""
        self._buffer += data
        while len(self._buffer) > CHUNK_BYTES:  # what is left may be the last
            self._seal(bytes(self._buffer[:CHUNK_BYTES]), last=False)
            del self._buffer[:CHUNK_BYTES]

    def finish(self) -> None:
        """Write the last chunk, without which the file cannot be read."""
        self._seal(bytes(self._buffer), last=True)
        self._buffer.clear()

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        nonce = _nonce(self._counter, last=last)
        self._file.write(self._cipher.encrypt(nonce, chunk, self._header))
        self._counter += 1


def decrypt(file: IO[bytes], key: str, name: str) -> Iterator[bytes]:
    """Yield the content of an encrypted file, each chunk after it was proven.

    Args:
        file: At its beginning.
        key: The secret, ``BACKUP_KEY``.
        name: Of the file, for messages.

    Raises:
        BackupDamaged: It is no encrypted file, was made with another key, or is not as it was.
    """
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an extra

    header = file.read(len(MAGIC) + SALT_BYTES)
    if not header.startswith(MAGIC) or len(header) < len(MAGIC) + SALT_BYTES:
        raise BackupDamaged(f"{name} is no encrypted file of pgcorpus")
    cipher = _cipher(key, header[len(MAGIC) :])
    counter = 0
    chunk = file.read(CHUNK_BYTES + TAG_BYTES)
    while True:
        following = file.read(CHUNK_BYTES + TAG_BYTES)
        try:
            opened = cipher.decrypt(_nonce(counter, last=not following), chunk, header)
        except InvalidTag:
            why = (
                "it was not encrypted with this BACKUP_KEY, or its beginning was changed"
                if counter == 0
                else f"it was changed or cut off after {counter * CHUNK_BYTES:,} bytes"
            )
            raise BackupDamaged(f"{name} cannot be decrypted: {why}") from None
        yield opened
        if not following:
            return
        chunk, counter = following, counter + 1


def authenticate(text: bytes, key: str) -> str:
    """Return the HMAC-SHA256 of a text with a key of its own, in hex digits."""
    own = hmac.digest(key.encode(), b"pgcorpus manifest 1", "sha256")
    return hmac.new(own, text, "sha256").hexdigest()


def _cipher(key: str, salt: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    derived = HKDF(SHA256(), length=32, salt=salt, info=MAGIC).derive(key.encode())
    return AESGCM(derived)


def _nonce(counter: int, *, last: bool) -> bytes:
    return counter.to_bytes(COUNTER_BYTES, "big") + bytes([last])
