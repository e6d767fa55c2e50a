"""Why an image was not stored: one reason, and a detail for people."""

from __future__ import annotations

import re

REASONS = {
    "empty": "no bytes at all",
    "not_image": "no known image signature: HTML, text, JSON …",
    "unsupported_format": "an image of a format or pixel type that is not read here",
    "decode_error": "broken or truncated",
    "too_many_pixels": "more pixels than max_pixels, seen before decoding",
    "too_small": "the shortest side is below min_image_size",
    "too_large_area": "the area is above max_image_area",
    "too_elongated": "the longest side over the shortest is above max_aspect_ratio",
    "bad_boxes": "boxes to blur that are no boxes: storing the image unblurred would be worse than dropping it",
    "encode_error": "the output format cannot hold the result",
}

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class ImageError(Exception):
    """An image is refused. `reason` is a key of REASONS; `detail` is free text."""

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason = reason
        # Decoders quote the bytes they choke on, and objects' addresses: a ledger's row is a line, the same every time.
        self.detail = _ADDRESS.sub("", detail)[:200]

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class NeedsPillow(Exception):
    """Between decoders: not for the fast one. CMYK, an animation, or an oddity that needs a second opinion."""
