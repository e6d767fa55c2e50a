"""Why a fetch failed: one stable word each, which tables, reports and `--retry` use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

REASONS = {
    "bad_url": "The url cannot be read.",
    "blocked_scheme": "The url, or a redirect, is neither http nor https.",
    "blocked_address": "The host's address is loopback, private, link-local or reserved, and not allowed by a flag.",
    "dns": "The host's name could not be resolved.",
    "connect": "No connection: refused or unreachable.",
    "tls": "No secure connection: certificate or handshake.",
    "timeout": "The deadline of the attempt passed.",
    "reset": "The connection broke before the answer was whole.",
    "rate_limited": "The server asked to wait longer than we may.",
    "too_many_redirects": "More redirects than allowed, or a loop.",
    "bad_redirect": "A redirect without a target that can be read.",
    "headers_too_large": "More or longer headers than allowed.",
    "too_large": "The body is larger than allowed, as sent or after its content encoding.",
    "wrong_length": "The body is shorter than the server said.",
    "bad_encoding": "The content encoding is broken or unknown.",
    "bad_response": "The answer is not HTTP.",
    "empty": "The answer has no body.",
}
PASSING = frozenset({"dns", "connect", "timeout", "reset", "wrong_length"})  # a second attempt may do better


class FetchError(Exception):
    """A fetch that failed. `reason`: a key of REASONS or http_NNN; `detail` holds no clock and no address."""

    def __init__(self, reason: str, detail: str | None = None, status: int | None = None) -> None:
        super().__init__(reason, detail, status)
        self.reason = reason
        self.detail = detail
        self.status = status
        self.headers: Mapping[str, str] = {}

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason

    @property
    def may_pass(self) -> bool:
        """Is another attempt worth while?"""
        return self.reason in PASSING or self.reason == "http_429" or self.reason.startswith("http_5")


def matches_retry(wanted: Sequence[str], reason: str) -> bool:
    """Does a reason fall under one of the words of `--retry`: a reason, 404, 4xx or 5xx?"""
    code = reason.removeprefix("http_")
    return any(
        word in (reason, code) or (word[1:] == "xx" and code[:1] == word[:1] and code.isdigit()) for word in wanted
    )
