"""What must not be stored, or must be removed: urls, domains, uids, hashes of bytes, perceptual hashes.

A line each: `url:https://…`, `domain:example.org` (its subdomains too), `uid:<32 hex>`, `sha256:<64 hex>`,
`phash:<16 hex>[/distance]`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import fsspec

from infra.errors import UsageError
from infra.sample import UID_BYTES

DEFAULT_DISTANCE = 4  # of 64 bits: recompressed and resized copies lie within, other pictures hardly ever


@dataclass
class DenyList:
    """A parsed list. Empty: nothing is denied."""

    urls: set[str] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    uids: set[bytes] = field(default_factory=set)
    sha256s: set[str] = field(default_factory=set)
    phashes: dict[int, list[int]] = field(default_factory=dict)  # distance → hashes
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
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            text = line.split("#")[0].strip() if not line.startswith("url:") else line.strip()
            if text:
                result._add(text, f"{path}:{number}")
        return result

    def _add(self, text: str, where: str) -> None:
        kind, _, value = text.partition(":")
        value = value.strip()
        try:
            if kind == "url" and value:
                self.urls.add(value)
            elif kind == "domain" and value:
                self.domains.add(value.lower().strip("."))
            elif kind == "uid" and len(bytes.fromhex(value)) == UID_BYTES:
                self.uids.add(bytes.fromhex(value))
            elif kind == "sha256" and len(bytes.fromhex(value)) == 32:
                self.sha256s.add(value.lower())
            elif kind == "phash":
                bits, _, distance = value.partition("/")
                self.phashes.setdefault(int(distance or DEFAULT_DISTANCE), []).append(_phash(bits))
            else:
                raise ValueError
        except ValueError:
            mend = "write url:…, domain:…, uid:<32 hex digits>, sha256:<64> or phash:<16>[/distance]"
            raise UsageError(f"{where}: cannot read {text!r}; {mend}") from None

    def denies_url(self, url: str) -> str | None:
        """ "denied_url" or "denied_domain", or None."""
        if url in self.urls:
            return "denied_url"
        if self.domains:
            try:
                parts = (urlsplit(url).hostname or "").lower().strip(".").split(".")
            except ValueError:
                return None  # no host to deny; the fetch refuses such a url
            if any(".".join(parts[at:]) in self.domains for at in range(len(parts))):
                return "denied_domain"
        return None

    def denies_bytes(self, sha256: str) -> str | None:
        """ "denied_sha256" or None."""
        return "denied_sha256" if sha256 in self.sha256s else None

    def denies_pixels(self, phash: int) -> str | None:
        """ "denied_phash" where a listed hash lies within its distance, or None."""
        for distance, hashes in self.phashes.items():
            if any((phash ^ denied).bit_count() <= distance for denied in hashes):
                return "denied_phash"
        return None


def _phash(text: Any) -> int:
    if len(text) != 16:
        raise ValueError(text)
    return int(text, 16)
