"""Why a fetch fails: the reasons, which of them a second attempt may mend, and how `--retry` names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from multidict import CIMultiDict, CIMultiDictProxy

# infra.reasons has a sentence for each, and for the family http_NNN. The value: may another attempt help?
REASONS: Mapping[str, bool] = {
    "bad_url": False,
    "blocked_scheme": False,
    "blocked_port": False,
    "blocked_address": False,
    "dns": True,  # unless the name servers say that there is no such name
    "connect": True,
    "tls": False,
    "timeout": True,
    "reset": True,
    "rate_limited": False,
    "too_many_redirects": False,
    "bad_redirect": False,
    "headers_too_large": False,
    "too_large": False,
    "wrong_length": True,
    "bad_encoding": False,
    "bad_response": False,
}
RETRYABLE_STATUSES = frozenset({408, 425, 429, *range(500, 600)} - {501, 505})

_DETAIL_CHARS = 300  # a detail may quote the server


class FetchError(Exception):
    """A url that could not be fetched. The only exception of a fetch.

    reason: a word of REASONS, or http_NNN. detail: one line for people; it is stored with the row, so it holds
    no clock, no address and no other thing that differs from run to run. status, headers: of the answer, where there
    was one. may_retry: could another attempt help? wait_s: how long the same failure is certain.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        status: int | None = None,
        headers: CIMultiDictProxy[str] | None = None,
        may_retry: bool | None = None,
        wait_s: float = 0.0,
    ) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = " ".join(detail[:_DETAIL_CHARS].split())
        self.status = status
        self.headers = CIMultiDictProxy(CIMultiDict[str]()) if headers is None else headers
        self.num_attempts = 1
        self.may_retry = _may_retry(reason, status) if may_retry is None else may_retry
        self.wait_s = wait_s

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def matches_retry(wanted: str | Sequence[str], reason: str) -> bool:
    """Does `--retry timeout,dns,5xx` mean this reason? 5xx, http_5xx, 503 and http_503 all mean http_503."""
    words = wanted.split(",") if isinstance(wanted, str) else wanted
    return any(_means(word.strip().lower(), reason) for word in words)


def _means(word: str, reason: str) -> bool:
    if word == reason:
        return True
    status = reason.removeprefix("http_")
    if status == reason:
        return False
    word = word.removeprefix("http_")
    return word == status or (len(word) == 3 and word.endswith("xx") and word[0] == status[0])


def _may_retry(reason: str, status: int | None) -> bool:
    return status in RETRYABLE_STATUSES if reason.startswith("http_") else REASONS[reason]
