"""Silence for the decoders: what they think of broken files belongs in the ledger, not on a terminal."""

from __future__ import annotations

import ctypes
import logging
import warnings
from pathlib import Path

import cv2
from PIL import Image, features


def silence_decoders() -> None:
    """Pillow's warnings and log, cv2's log and libtiff's messages, for the whole process. Exceptions still come."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    logging.getLogger("exifread").setLevel(logging.CRITICAL)
    _silence_libtiff()


def _silence_libtiff() -> None:
    """libtiff prints from C: only its own switch stops that without swapping file descriptors under other threads."""
    if not features.check("libtiff"):
        return
    maps = Path("/proc/self/maps")  # names the very library that Pillow loaded; elsewhere than Linux it may chatter
    lines = maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.exists() else []
    for path in {line.split(maxsplit=5)[5] for line in lines if "libtiff" in line}:
        library = ctypes.CDLL(path)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
