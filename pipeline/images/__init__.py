"""Downloaded bytes to stored bytes: sniff, decode, turn upright, resize, encode. Hostile bytes are the normal case.

sniff → decode (jpeg | Pillow → colour) → orient → resize → blur → frame → encode
"""

from pipeline.images.config import ImageConfig
from pipeline.images.convert import Converted, Prepared, convert, prepare
from pipeline.images.errors import REASONS, ImageError

__all__ = ["REASONS", "Converted", "ImageConfig", "ImageError", "Prepared", "convert", "prepare"]
