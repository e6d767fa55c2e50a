"""In which encoding is a page written? Byte-order mark, Content-Type, meta, then a guess; never an error.

Order and labels follow the WHATWG Encoding and HTML standards, as browsers do.
"""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

META_SCAN_BYTES = 1024  # where the HTML standard stops looking for a declaration

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_LABEL = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';,/>]+)", re.IGNORECASE)
_META = re.compile(rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([^\s\"';,/>]+)", re.IGNORECASE)

# Labels that mean another encoding on the web than in Python's registry, or that the registry lacks.
_CODECS = {
    "cp1252": ("ascii us-ascii ansi_x3.4-1968 iso-8859-1 iso8859-1 iso88591 latin1 latin-1 l1 cp819 x-user-defined "
               "x-cp1252 windows-1252"),
    "cp1254": "iso-8859-9 iso8859-9 iso88599 latin5 l5 x-cp1254",
    "cp874": "iso-8859-11 iso8859-11 iso885911 tis-620 dos-874 windows-874",
    "cp932": "shift_jis shift-jis sjis x-sjis ms_kanji ms932 windows-31j csshiftjis",
    "cp949": "euc-kr euckr korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 csksc56011987 iso-ir-149",
    "gb18030": "gbk x-gbk gb2312 gb_2312 gb_2312-80 chinese csgb2312 csiso58gb231280 iso-ir-58",
    "big5hkscs": "big5 big5-hkscs cn-big5 x-x-big5 csbig5",
    "iso8859-8": "iso-8859-8-i csiso88598i logical iso-8859-8-e visual",
    "mac_roman": "macintosh mac x-mac-roman csmacintosh",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "euc_jp": "x-euc-jp euc-jp cseucpkdfmtjapanese",
    # A page whose meta could be read as ASCII cannot be UTF-16.
    "utf-8": "unicode-1-1-utf-8 x-unicode20utf8 unicode11utf8 unicode20utf8 utf8 utf-16 utf-16le utf-16be unicode",
}  # fmt: skip
_ALIASES = {label: codec for codec, labels in _CODECS.items() for label in labels.split()}
# Not encodings of the web, or such as the standard answers with a single U+FFFD.
_REFUSED = {"utf_7", "utf_32", "utf_32_le", "utf_32_be", "hz", "iso2022_kr", "unicode_escape", "raw_unicode_escape",
            "idna", "punycode", "undefined"}  # fmt: skip


@lru_cache(maxsize=512)
def codec_of(label: str) -> str | None:
    """Python's codec for an encoding label of the web; None where no such text encoding exists."""
    label = label.strip().lower()
    if known := _ALIASES.get(label):
        return known
    try:
        codec = codecs.lookup(label)
    except (LookupError, ValueError):
        return None
    if not getattr(codec, "_is_text_encoding", False) or codec.name.replace("-", "_") in _REFUSED:
        return None
    return codec.name


def detect(body: bytes, content_type: str | None = None) -> str:
    """Python's codec for a page's bytes. `content_type`: the HTTP header, whole."""
    for bom, codec in _BOMS:
        if body.startswith(bom):
            return codec
    if content_type and (match := _LABEL.search(content_type)):
        # UTF-16 is possible where the header, not the page itself, says so.
        label = match[1].lower()
        named = {"utf-16": "utf-16-le", "utf-16le": "utf-16-le", "utf-16be": "utf-16-be"}.get(label, codec_of(label))
        if named is not None:
            return named
    if declared := _META.search(body, 0, META_SCAN_BYTES):
        named = codec_of(declared[1].decode("ascii", "replace"))
        if named is not None:
            return named
    try:
        body.decode()
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def to_utf8(body: bytes, content_type: str | None = None) -> bytes:
    """The page as UTF-8 without a byte-order mark. What is invalid in its encoding becomes U+FFFD."""
    codec = detect(body, content_type)
    if codec == "utf-8":
        return body.removeprefix(codecs.BOM_UTF8)
    return body.decode(codec, "replace").removeprefix("\ufeff").encode("utf-8", "replace")
