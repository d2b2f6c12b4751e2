"""The characters of a file, from its bytes."""

from __future__ import annotations

import codecs
import re
from typing import Final

from pgcorpus.services.documentation.reading.document import Unreadable

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NAMES: Final = {"utf-8": "UTF-8", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16"}

_DECLARED: Final = re.compile(
    rb"""<(?:meta|\?xml)\b[^>]{0,200}?\b(?:charset|encoding)\s*=\s*["']?\s*"""
    rb"(iso-8859-\d{1,2}|windows-\d{3,4}|koi8-[ru]|us-ascii|gb2312|gbk|gb18030|big5|shift_jis|"
    rb"euc-(?:jp|kr))\b",
    re.IGNORECASE,
)
"""Encodings that web pages have. Python knows others that are no encodings of text, or slow."""

_DECLARED_WITHIN_BYTES: Final = 1024
"""The HTML standard looks no further for the encoding."""


def decode(content: bytes, *, may_declare: bool = False) -> str:
    r"""Return the text of a file, with ``\n`` between its lines and no byte order mark.

    Args:
        content: UTF-8, or UTF-16 with a byte order mark.
        may_declare: Whether a text that is not UTF-8 may name its encoding, as web pages do.

    Raises:
        Unreadable: It is of another encoding, or holds NUL bytes, as binary files do.
    """
    mark, encoding = next((each for each in _MARKS if content.startswith(each[0])), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        declared = _DECLARED.search(content, 0, _DECLARED_WITHIN_BYTES) if may_declare else None
        offset = error.start + len(mark)
        if declared is None or mark:
            raise Unreadable(
                f"it is not {_NAMES[encoding]}: byte 0x{content[offset]:02x} at offset {offset}; "
                "save it as UTF-8"
            ) from error
        text = _decode_declared(content, declared[1].decode().lower())
    if "\0" in text:
        raise Unreadable(f"it is no text: a NUL at character {text.index(chr(0))}")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _decode_declared(content: bytes, encoding: str) -> str:
    # Pages that say ISO-8859-1 are read as windows-1252 by all browsers, as the standard says.
    if encoding in {"iso-8859-1", "us-ascii"}:
        encoding = "windows-1252"
    try:
        return content.decode(encoding, errors="replace")
    except LookupError as error:
        raise Unreadable(f"it is of an unknown encoding, {encoding}") from error
