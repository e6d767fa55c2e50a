"""What do the first bytes say? Formats by signature, never by name or Content-Type."""

from __future__ import annotations

from pipeline.images.errors import ImageError

# What browsers show, and TIFF and JPEG 2000, which archives hold. Each further decoder is attack surface.
_READ = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
_KNOWN_BUT_NOT_READ = (
    (b"8BPS", "PSD"),
    (b"DDS ", "DDS"),
    (b"\x01\xda", "SGI"),
    (b"\0\0\2\0", "CUR"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"icns", "ICNS"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"%!PS", "PostScript"),
    (b"gimp xcf", "XCF"),
    (b"II\xbc", "JPEG XR"),
    (b"qoif", "QOI"),
    (b"P1\n", "PNM"),
    (b"P2\n", "PNM"),
    (b"P3\n", "PNM"),
    (b"P4\n", "PNM"),
    (b"P5\n", "PNM"),
    (b"P6\n", "PNM"),
)
_BMP_HEADER_SIZES = {12, 16, 40, 52, 56, 64, 108, 124}


def sniff(data: bytes) -> str:
    """Pillow's name of the format, one of those read here. Raises ImageError: empty, not_image, unsupported_format."""
    if not data:
        raise ImageError("empty")
    head = bytes(data[:512])
    for signature, name in _READ:
        if head.startswith(signature):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    # Two letters alone would take any text that starts with "BM" for a bitmap.
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if head[4:8] == b"ftyp" and _brands(head) & {b"avif", b"avis"}:
        return "AVIF"
    if unread := _unread_format(head):
        raise ImageError("unsupported_format", unread)
    raise ImageError("not_image", f"starts with {head[:24]!r}")


def _brands(head: bytes) -> set[bytes]:
    """Major and compatible brands of an ISO media file."""
    box = head[: int.from_bytes(head[:4], "big")]
    return {box[at : at + 4] for at in range(8, len(box), 4) if at != 12}


def _unread_format(head: bytes) -> str | None:
    for signature, name in _KNOWN_BUT_NOT_READ:
        if head.startswith(signature):
            return name
    if head[4:8] == b"ftyp" and _brands(head) & {b"heic", b"heix", b"mif1", b"msf1", b"hevc"}:
        return "HEIF"
    if head[4:6] in (b"\x11\xaf", b"\x12\xaf"):
        return "FLI"
    if head[:1] == b"\n" and head[1:2] in (b"\0", b"\2", b"\3", b"\5") and head[2:3] in (b"\0", b"\1"):
        return "PCX"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text and b"<html" not in text):
        return "SVG"
    return None
