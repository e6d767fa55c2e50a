"""Settings of a download: what is read, fetched, converted and stored."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from infra.recipe import tuning
from pipeline.fetch.config import FetchConfig
from pipeline.images.config import ImageConfig


class DownloadConfig(FetchConfig, ImageConfig):
    """Every setting of `python -m pipeline download`."""

    url_col: str | None = Field(None, description="Column of image urls; unset: url, URL or image_url.")
    caption_col: str | None = Field(None, description="Column of captions; unset: caption, TEXT or text.")
    hash_col: str | None = Field(None, description="Column of expected hashes of the bytes, for --verify-hash.")
    verify_hash: Literal["md5", "sha256", "sha512"] | None = Field(
        None, description="Keep an image only if this hash of its bytes equals --hash-col."
    )
    bbox_col: str | None = Field(None, description="Column of boxes (x0, y0, x1, y1 as fractions) to blur: faces.")
    shard_size: int = Field(10_000, gt=0, description="Rows of a shard.")
    shard_digits: int = Field(5, ge=1, le=9, description="Width of the shard number in file names.")
    engine: Literal["native", "img2dataset"] = Field("native", description="What fetches and converts.")
    respect_opt_out: bool = Field(
        True, description="Leave out images whose X-Robots-Tag says noai, noimageai, noindex or noimageindex."
    )
    allow_archive: tuple[str, ...] = Field(
        (),
        description="Folders or url prefixes of archives that a table's warc_path may name, to read images from. The "
        "dataset's own crawl needs none.",
    )
    deny: str | None = Field(
        None,
        description="File of what must not be stored, a line each: url:…, domain:…, uid:…, sha256:…, phash:….",
    )
    threads: int | None = tuning(
        None, "Threads that decode and resize; unset: --cpus-per-worker, or all CPUs with --local."
    )
    cpus_per_worker: float = tuning(1.0, "CPUs that Ray reserves for a worker.", gt=0)

    @field_validator("deny")
    @classmethod
    def _deny_is_given(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("give a file, or leave --deny out")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.verify_hash is None) != (self.hash_col is None):
            raise ValueError("--verify-hash and --hash-col go together: which hash, and the column that holds it")
        if self.deny and self.engine == "img2dataset":
            raise ValueError("img2dataset knows no deny list; leave --deny out, or take the native engine")
        return self
