"""What must not be stored, or must be removed: urls, domains, uids, hashes of bytes, perceptual hashes.

A line each: `url:https://…` (however it is spelt), `domain:example.org` (its subdomains too), `uid:<32 hex>`,
`sha256:<64 hex>`, `phash:<16 hex>[/distance]`. The word before the colon may be left out where the rest says it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import fsspec

from filters.rules import MAX_DISTANCE
from infra.errors import UsageError
from infra.sample import UID_BYTES
from pipeline.urls import Resolver, host_of

DEFAULT_DISTANCE = 4  # of 64 bits: recompressed and resized copies lie within, other pictures hardly ever

_MENDS = {
    "url": "write the whole address, url:https://…",
    "domain": "write a host alone, domain:example.org: its subdomains, paths and ports go with it",
    "uid": f"write uid:<{2 * UID_BYTES} hex digits>",
    "sha256": "write sha256:<64 hex digits>",
    "phash": f"write phash:<16 hex digits>[/distance], at most {MAX_DISTANCE} bits apart",
}
_PLAIN = {  # what needs no word before it; a perceptual hash does: it takes others than itself
    "url": re.compile("https?://.+", re.IGNORECASE),
    "uid": re.compile(f"[0-9A-Fa-f]{{{2 * UID_BYTES}}}"),
    "sha256": re.compile("[0-9A-Fa-f]{64}"),
    "domain": re.compile(r"[^\s:/]+\.[^\s:/]+"),
}
_ESCAPE = re.compile("%[0-9A-Fa-f]{2}")
_DIVIDING = frozenset("%/?#&=+;\\")  # they mean something else where they are not escaped
_absolute = Resolver("")

Match = tuple[str, int]  # the kind of a line, and its number


@dataclass
class DenyList:
    """A parsed list: each thing with the number of the first line that names it. Empty: nothing is denied."""

    urls: dict[str, int] = field(default_factory=dict)  # in one spelling
    domains: dict[str, int] = field(default_factory=dict)
    uids: dict[bytes, int] = field(default_factory=dict)
    sha256s: dict[str, int] = field(default_factory=dict)
    phashes: dict[tuple[int, int], int] = field(default_factory=dict)  # by hash and distance
    lines: dict[int, str] = field(default_factory=dict)  # as they were written; none that say the same again
    digest: str = ""

    @classmethod
    def load(cls, path: str | None, flag: str = "--deny") -> DenyList:
        """Read the list that `flag` names. Raises UsageError that names the line it cannot read."""
        if path is None:
            return cls()
        try:
            with fsspec.open(path, "rb") as file:
                data: bytes = file.read()
        except (OSError, ValueError) as error:
            raise UsageError(f"{flag} {path}: cannot be read: {error}") from None
        result = cls(digest=hashlib.blake2b(data, digest_size=16).hexdigest())
        for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
            text = line.split("#")[0].strip() if not line.startswith("url:") else line.strip()
            if text:
                result._add(text, number, path)
        return result

    def _add(self, text: str, number: int, path: str) -> None:
        kind = next((kind for kind, form in _PLAIN.items() if form.fullmatch(text)), None)
        kind, _, value = (kind, "", text) if kind else text.partition(":")
        try:
            is_new = self._enter(kind, value.strip(), number)
        except ValueError:
            mend = _MENDS.get(kind, "write url:…, domain:…, uid:…, sha256:… or phash:…, a line each")
            raise UsageError(f"{path}:{number}: cannot read {text!r}; {mend}") from None
        if is_new:
            self.lines[number] = text

    def _enter(self, kind: str, value: str, number: int) -> bool:
        """Note what a line names; False where an earlier one does. Raises ValueError for what is none of its kind."""
        if kind == "url" and value:
            return self.urls.setdefault(one_spelling(value), number) == number
        if kind == "domain":
            return self.domains.setdefault(_host(value), number) == number
        if kind == "uid" and len(bytes.fromhex(value)) == UID_BYTES:
            return self.uids.setdefault(bytes.fromhex(value), number) == number
        if kind == "sha256" and len(bytes.fromhex(value)) == 32:
            return self.sha256s.setdefault(value.lower(), number) == number
        if kind == "phash":
            return self.phashes.setdefault(_hash_and_distance(value), number) == number
        raise ValueError(kind)

    def of_url(self, url: str) -> Iterator[Match]:
        """The lines that name an address, or a domain that it lies in."""
        if not (self.urls or self.domains):
            return
        spelt = one_spelling(url)
        if spelt in self.urls:
            yield "url", self.urls[spelt]
        try:
            parts = (urlsplit(spelt).hostname or "").strip(".").split(".")
        except ValueError:
            return  # no host to deny; the fetch refuses such a url
        for at in range(len(parts)):
            if line := self.domains.get(".".join(parts[at:])):
                yield "domain", line

    def of_bytes(self, sha256: str) -> Iterator[Match]:
        """The line that names these bytes."""
        if line := self.sha256s.get(sha256):
            yield "sha256", line

    def of_pixels(self, phash: int) -> Iterator[Match]:
        """The lines whose hash lies within their distance."""
        for (denied, distance), line in self.phashes.items():
            if (phash ^ denied).bit_count() <= distance:
                yield "phash", line

    def denies_url(self, url: str) -> str | None:
        """ "denied_url" or "denied_domain", or None."""
        return _reason(self.of_url(url))

    def denies_bytes(self, sha256: str) -> str | None:
        """ "denied_sha256" or None."""
        return _reason(self.of_bytes(sha256))

    def denies_pixels(self, phash: int) -> str | None:
        """ "denied_phash" where a listed hash lies within its distance, or None."""
        return _reason(self.of_pixels(phash))


def one_spelling(url: str) -> str:
    """One spelling of an address: case, default port, escapes and fragment aside. No http(s) url stays as it is."""
    return _ESCAPE.sub(_unescaped, _absolute(url) or url)


def _unescaped(escape: re.Match[str]) -> str:
    sign = chr(int(escape[0][1:], 16))
    return sign if sign.isascii() and sign.isprintable() and sign not in _DIVIDING else escape[0].upper()


def _reason(matches: Iterator[Match]) -> str | None:
    return next((f"denied_{kind}" for kind, _ in matches), None)


def _host(text: str) -> str:
    """A host as addresses have it. Raises ValueError for anything else."""
    if set("*/:@?") & set(text):
        raise ValueError(text)
    host = host_of(_absolute(f"http://{text.strip('.')}/") or "")
    if not host:
        raise ValueError(text)
    return host


def _hash_and_distance(text: str) -> tuple[int, int]:
    bits, slash, distance = text.partition("/")
    allowed = int(distance) if slash else DEFAULT_DISTANCE
    if len(bits) != 16 or not 0 <= allowed <= MAX_DISTANCE:
        raise ValueError(text)
    return int(bits, 16), allowed
