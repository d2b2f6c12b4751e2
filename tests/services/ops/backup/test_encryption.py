"""An encrypted file cannot be read, changed or cut off without its key."""

from __future__ import annotations

import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgcorpus.db.errors import BackupDamaged
from pgcorpus.services.ops.backup.encryption import (
    CHUNK_BYTES,
    MAGIC,
    SALT_BYTES,
    TAG_BYTES,
    EncryptingWriter,
    decrypt,
)

KEY = "k" * 32
HEADER_BYTES = len(MAGIC) + SALT_BYTES
SEALED_BYTES = CHUNK_BYTES + TAG_BYTES


def encrypt(content: bytes, piece: int = 1 << 18) -> bytes:
    """Encrypt in pieces of another size than the chunks have."""
    file = io.BytesIO()
    writer = EncryptingWriter(file, KEY)
    for start in range(0, len(content), piece):
        writer.write(content[start : start + piece])
    writer.finish()
    return file.getvalue()


def read(written: bytes, key: str = KEY) -> bytes:
    """Decrypt all of it."""
    return b"".join(decrypt(io.BytesIO(written), key, "file"))


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]
)
def test_a_file_of_any_size_is_read_as_it_was_written(size: int) -> None:
    """Also one whose last chunk is full, and an empty one."""
    content = os.urandom(size)
    written = encrypt(content)
    assert read(written) == content
    assert content[:64] not in written or size < 64  # a byte or two are in any file


def test_the_same_content_is_encrypted_otherwise_each_time() -> None:
    """Each file has a key of its own, so that no nonce comes twice."""
    first, second = encrypt(b"same"), encrypt(b"same")
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]


CONTENT = os.urandom(2 * CHUNK_BYTES + 100)
WRITTEN = encrypt(CONTENT)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, len(WRITTEN) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found_wherever_it_is(place: int, change: int) -> None:
    """In the header, in a chunk, in a tag."""
    changed = bytearray(WRITTEN)
    changed[place] ^= change
    with pytest.raises(BackupDamaged):
        read(bytes(changed))


@pytest.mark.parametrize(
    "length",
    [
        0,
        HEADER_BYTES,
        HEADER_BYTES + 10,
        HEADER_BYTES + SEALED_BYTES,  # between two chunks: each is whole
        HEADER_BYTES + 2 * SEALED_BYTES,
        len(WRITTEN) - 1,
    ],
)
def test_a_file_that_was_cut_off_is_found(length: int) -> None:
    """The last chunk says that it is the last."""
    with pytest.raises(BackupDamaged):
        read(WRITTEN[:length])


def test_chunks_that_were_exchanged_repeated_or_appended_are_found() -> None:
    """The nonce of each counts it."""
    header = WRITTEN[:HEADER_BYTES]
    first = WRITTEN[HEADER_BYTES : HEADER_BYTES + SEALED_BYTES]
    second = WRITTEN[HEADER_BYTES + SEALED_BYTES : HEADER_BYTES + 2 * SEALED_BYTES]
    last = WRITTEN[HEADER_BYTES + 2 * SEALED_BYTES :]
    for forged in (
        header + second + first + last,
        header + first + first + second + last,
        WRITTEN + last,
        WRITTEN + b"x",
        encrypt(b"")[:HEADER_BYTES] + first + second + last,
    ):
        with pytest.raises(BackupDamaged):
            read(forged)


def test_another_key_reads_nothing() -> None:
    """The message says what may be wrong, and shows no key."""
    with pytest.raises(BackupDamaged, match="not encrypted with this BACKUP_KEY") as refused:
        read(WRITTEN, "another key of 32 characters....")
    assert "another key" not in str(refused.value)
