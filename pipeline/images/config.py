"""What is done to an image between download and shard."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.recipe import Config

ResizeMode = Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
EncodeFormat = Literal["jpg", "png", "webp"]

# Pillow refuses twice its MAX_IMAGE_PIXELS whatever we allow; a higher limit would promise what it cannot keep.
PILLOW_PIXELS = 178_956_970


class ImageConfig(Config):
    """Which images are kept, and in which size and encoding. Sizes are in pixels of the upright image."""

    image_size: int = Field(512, ge=1, le=16383, description="side of the resized image in pixels, as the mode says")
    resize_mode: ResizeMode = Field(
        "keep_ratio_largest",
        description="no: as it is; keep_ratio: shortest side to the size; keep_ratio_largest: longest side to it; "
        "center_crop: keep_ratio, then the middle square; border: keep_ratio_largest, then padded with white",
    )
    only_if_bigger: bool = Field(True, description="leave images alone that are not bigger than the size")
    encode_format: EncodeFormat = Field("jpg", description="format of the stored images")
    encode_quality: int = Field(95, ge=1, le=100, description="JPEG or WebP quality; png is lossless and ignores it")
    subsampling: Literal["420", "422", "444"] = Field("420", description="chroma subsampling of stored JPEGs")
    min_image_size: int = Field(0, ge=0, description="drop images whose shortest side has fewer pixels")
    max_image_area: int | None = Field(None, ge=1, description="drop images with more pixels than this")
    max_aspect_ratio: float | None = Field(
        None, ge=1, description="drop images with longest / shortest side above this"
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        le=PILLOW_PIXELS,
        description="refuse to decode (or enlarge to) more pixels: bounds memory, at 10 to 26 bytes per pixel",
    )
    keep_exif: bool = Field(False, description="keep EXIF metadata as a JSON column; stored images never hold it")
