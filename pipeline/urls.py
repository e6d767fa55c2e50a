"""An address as a browser would resolve it: absolute http(s), normal form, no fragment; or none at all.

Follows the WHATWG URL standard for http and https, with two refusals of our own: user names and passwords, and more
than 8,192 characters.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import lru_cache
from urllib.parse import quote, unquote

import idna

MAX_URL_CHARS = 8_192
MAX_HOST_CHARS = 253

_TRIM = "".join(map(chr, range(33)))  # C0 controls and space
_LINE_BREAKS = str.maketrans("", "", "\t\r\n")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_PORTS = {"http": 80, "https": 443}
# Percent-encoded by the standard's path and query sets, everything beyond ASCII besides; "%" stays as it is.
_PATH_SAFE = "!$%&'()*+,-./:;=@[\\]_|~"
_QUERY_SAFE = "!$%&()*+,-./:;=?@[\\]^_`{|}~"
_NUMBER_LAST = re.compile(r"(?:^|\.)(?:\d+|0x[0-9a-f]*)\.?$")
_HOST = re.compile(r"[a-z0-9._\-]+", re.ASCII)
# What most references look like: nothing in them to encode, to fold or to cut off. No "." or ".." segment either.
_PLAIN_PATH = r"(?:/(?!\.{1,2}(?:/|\?|$)|\.?%2[eE])[A-Za-z0-9!$%&'()*+,\-.:;=@_~]*+)"
_PLAIN_QUERY = r"(?:\?[A-Za-z0-9!$%&()*+,\-./:;=?@_~]*+)?"
_PLAIN_URL = re.compile(rf"https?://(?:[a-z0-9_\-]+\.)+[a-z][a-z0-9\-]*+{_PLAIN_PATH}+{_PLAIN_QUERY}", re.ASCII)
_PLAIN_ABSOLUTE_PATH = re.compile(rf"(?=/[^/]|/$){_PLAIN_PATH}+{_PLAIN_QUERY}", re.ASCII)
_PLAIN_RELATIVE_PATH = re.compile(rf"(?!\.)[A-Za-z0-9_~\-][A-Za-z0-9_~.\-]*+{_PLAIN_PATH}*{_PLAIN_QUERY}", re.ASCII)
_DOTS = {".": 1, "%2e": 1, "..": 2, ".%2e": 2, "%2e.": 2, "%2e%2e": 2}


class Resolver:
    """Resolves the references of one page. `base`: an absolute http(s) url; with a bad one only absolute urls hold."""

    def __init__(self, base: str) -> None:
        self.base = _resolve(base, None)
        self._parts = _split(self.base) if self.base else None
        self._room = MAX_URL_CHARS - len(self.base or "")
        if self._parts is not None:
            scheme, host, path, _ = self._parts
            self._origin = f"{scheme}://{host}"
            self._folder = self._origin + path[: path.rfind("/") + 1]

    def __call__(self, reference: str) -> str | None:
        """The absolute url, or None where the reference is no http(s) url or not a valid one."""
        if "#" in reference:
            reference = reference[: reference.index("#")]
        if len(reference) <= self._room:
            if _PLAIN_URL.fullmatch(reference):
                return reference
            if self._parts is not None:
                if reference.startswith("//") and _PLAIN_URL.fullmatch(url := f"{self._parts[0]}:{reference}"):
                    return url
                if _PLAIN_ABSOLUTE_PATH.fullmatch(reference):
                    return self._origin + reference
                if _PLAIN_RELATIVE_PATH.fullmatch(reference):
                    return self._folder + reference
        return _resolve(reference, self._parts)


def clean_url(reference: str, base: str) -> str | None:
    """One reference against its base; see Resolver."""
    return Resolver(base)(reference)


def host_of(url: str) -> str:
    """host[:port] of a url in normal form; "" where there is none."""
    parts = url.split("/", 3)
    return parts[2] if len(parts) > 2 and parts[0] in ("http:", "https:") else ""


def _resolve(reference: str, base: tuple[str, str, str, str] | None) -> str | None:
    """The long way, by the standard. `base`: scheme, host with port, path, query with its "?"."""
    if len(reference) > 4 * MAX_URL_CHARS:
        return None  # long before the cap in practice: data urls and rubbish, not worth encoding
    text = reference.strip(_TRIM).translate(_LINE_BREAKS).partition("#")[0]
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else None
    if match and scheme not in _PORTS:
        return None
    rest = text[match.end() :] if match else text
    before, mark, query = rest.partition("?")
    before = before.replace("\\", "/")
    if scheme is not None and base is not None and scheme == base[0] and not before.startswith("/"):
        scheme = None  # "http:a.jpg" is relative, for history's sake
    if scheme is None:
        if base is None:
            return None
        scheme = base[0]
        if before.startswith("//"):
            url = _absolute(scheme, before, mark + query)
        else:
            path = before if before.startswith("/") else _beside(base[2], before)
            kept = base[3] if not before and not mark else _encode_query(mark + query)
            url = f"{scheme}://{base[1]}{_path(path)}{kept}"
    else:
        url = _absolute(scheme, before, mark + query)
    return url if url is not None and len(url) <= MAX_URL_CHARS else None


def _absolute(scheme: str, before: str, query: str) -> str | None:
    authority, _, path = before.lstrip("/").partition("/")
    host = _authority(authority, _PORTS[scheme])
    return None if host is None else f"{scheme}://{host}{_path('/' + path)}{_encode_query(query)}"


def _beside(base_path: str, relative: str) -> str:
    return base_path[: base_path.rfind("/") + 1] + relative if relative else base_path


@lru_cache(maxsize=4096)
def _authority(authority: str, default_port: int) -> str | None:
    """Host in ASCII, lower case, with a port that is not the scheme's own. None: user name, bad host, bad port."""
    host, bracket, port = authority.rpartition("]")
    if bracket:
        host += "]"
    else:
        host, _, port = authority.partition(":")
        port = f":{port}" if port else ""
    if port not in ("", ":"):
        if not (port[0] == ":" and port[1:].isascii() and port[1:].isdigit() and len(port) < 12):
            return None
        number = int(port[1:])
        if number > 65_535:
            return None
        port = "" if number == default_port else f":{number}"
    name = _host(host)
    return None if name is None else name + port.rstrip(":")


def _host(host: str) -> str | None:
    if host.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]" if "%" not in host else None
        except ValueError:
            return None
    host = unquote(host)
    if len(host) > MAX_HOST_CHARS:
        return None
    try:
        host = host.lower() if host.isascii() else idna.encode(host, uts46=True).decode("ascii")
        if not _HOST.fullmatch(host):
            return None
        # As browsers do: 0x7f000001 is 127.0.0.1, so one address has one spelling.
        return socket.inet_ntoa(socket.inet_aton(host)) if _NUMBER_LAST.search(host) else host
    except (idna.IDNAError, UnicodeError, OSError):
        return None


def _path(path: str) -> str:
    """Encoded, with "." and ".." resolved; always begins with "/"."""
    if "/." in path or "%2" in path:
        segments = path.split("/")[1:]
        kept: list[str] = []
        last = len(segments) - 1
        for at, segment in enumerate(segments):
            dots = _DOTS.get(segment.lower(), 0) if len(segment) <= 6 else 0
            if dots == 2 and kept:
                kept.pop()
            if not dots:
                kept.append(segment)
            elif at == last:
                kept.append("")
        path = "/" + "/".join(kept)
    return quote(path, safe=_PATH_SAFE, errors="replace")


def _encode_query(query: str) -> str:
    return quote(query, safe=_QUERY_SAFE, errors="replace") if query else ""


def _split(url: str) -> tuple[str, str, str, str]:
    """Scheme, host with port, path, query with its "?" of a url that `_resolve` has made."""
    scheme, _, rest = url.partition("://")
    host, slash, tail = rest.partition("/")
    path, mark, query = (slash + tail).partition("?")
    return scheme, host, path, mark + query
