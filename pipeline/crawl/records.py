"""What an archive holds, record by record: a page, an image, a page as a WAT file tells it, or nothing of use."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.crawl.page import Page


@dataclass(frozen=True, slots=True)
class PageRecord:
    """A page. `is_clipped`: the archive holds only its beginning. headers: of the HTTP response, as sent."""

    url: str
    offset: int
    body: bytes
    content_type: str | None
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    is_clipped: bool = False

    @property
    def content_language(self) -> str | None:
        """The HTTP header."""
        return next((value for name, value in self.headers if name.lower() == "content-language"), None)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image that lies in the archive. num_bytes: of its body as stored. headers: of the HTTP response."""

    url: str
    offset: int
    content_type: str
    num_bytes: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class WatRecord:
    """A page as a WAT file describes it. The offset is the WAT record's own."""

    url: str
    offset: int
    page: Page
    status: int | None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that gives nothing. `is_page`: it stands for a page, and deserves a row of its own."""

    reason: str
    offset: int
    url: str | None = None
    status: int | None = None
    is_page: bool = False


class RecordError(Exception):
    """A record cannot be had. `reason`: clipped, bad_record, too_large, bad_encoding, http_NNN; `detail` for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
