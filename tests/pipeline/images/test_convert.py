"""One image in, one image or one reason out: limits, colours, orientation, metadata, encodings."""

from __future__ import annotations

import io
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from infra.errors import RecipeError
from pipeline.images import REASONS, ImageConfig, ImageError, convert, prepare

# Pillow's warnings are silenced for the process; pytest puts its own filters in their place.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

AS_IS = ImageConfig(resize_mode="no")


def reason_of(data: bytes, config: ImageConfig = AS_IS) -> str:
    with pytest.raises(ImageError) as caught:
        convert(data, config)
    assert caught.value.reason in REASONS
    return caught.value.reason


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header says width × height and whose data is a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!doctype html><html><body><svg></svg></body></html>", "not_image"),
        (b'{"error": "gone"}', "not_image"),
        (b"BMW is a maker of cars, not a bitmap", "not_image"),
        (b"\n\nhello", "not_image"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"),
        (b"8BPS\0\1", "unsupported_format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported_format"),
        (b"\xff\x0a\0\0", "unsupported_format"),
        (b"\xff\xd8\xff", "decode_error"),
        (b"\x89PNG\r\n\x1a\n", "decode_error"),
        (b"RIFF\0\0\0\0WEBP", "decode_error"),
        (b"\0\0\1\0\1\0", "decode_error"),
    ],
)
def test_what_is_no_image_has_its_reason(data, reason):
    assert reason_of(data) == reason


def test_details_are_short_and_the_same_every_time():
    details = set()
    for _ in range(3):
        with pytest.raises(ImageError) as caught:
            convert(b"\x89PNG\r\n\x1a\n" + b"x" * 5000, AS_IS)
        details.add(caught.value.detail)
    assert len(details) == 1
    assert len(details.pop()) <= 200


def test_limits_are_asked_before_any_pixel_is_decoded(scene, encoded):
    # The files hold no such pixels: decoding first would end in decode_error.
    assert reason_of(png_claiming(30000, 30000)) == "too_many_pixels"
    assert reason_of(png_claiming(0, 5)) == "decode_error"
    assert reason_of(png_claiming(40, 300), ImageConfig(min_image_size=50)) == "too_small"
    assert reason_of(png_claiming(400, 300), ImageConfig(max_image_area=100_000)) == "too_large_area"
    assert reason_of(png_claiming(400, 100), ImageConfig(max_aspect_ratio=3.9)) == "too_elongated"
    for format_name in ("JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF", "JPEG2000"):
        data = encoded(scene(64, 64), format_name)
        assert reason_of(data, ImageConfig(max_pixels=4095)) == "too_many_pixels", format_name
        assert convert(data, ImageConfig(max_pixels=4096)).width == 64, format_name


def test_an_icon_is_judged_by_the_image_inside_not_by_its_directory():
    inner = png_claiming(20000, 20000)
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    assert reason_of(icon) == "too_many_pixels"


def test_a_webp_is_judged_before_its_canvas_is_allocated():
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + (16000).to_bytes(3, "little") + (10000).to_bytes(3, "little")
    assert reason_of(b"RIFF" + struct.pack("<I", len(canvas) + 4) + b"WEBP" + canvas) == "too_many_pixels"


def test_a_tiff_is_judged_by_its_tiles_too():
    body = zlib.compress(bytes(10000 * 10000), 9)
    values = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 10000, 323: 10000, 324: 200, 325: len(body)}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    data = (b"II*\0" + struct.pack("<IH", 8, len(values)) + tags).ljust(200, b"\0") + body
    assert reason_of(data) == "too_many_pixels"


def test_limits_are_inclusive(scene, encoded):
    data = encoded(scene(90, 30), "PNG")
    kept = convert(data, ImageConfig(min_image_size=30, max_image_area=2700, max_aspect_ratio=3, max_pixels=2700))
    assert (kept.original_width, kept.original_height) == (90, 30)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_gone(scene, encoded, format_name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} if format_name != "TIFF" else {"tiffinfo": {0x0112: orientation}}
    data = encoded(scene(48, 32), format_name, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    prepared = prepare(data, AS_IS)
    assert prepared.pixels.shape == upright.shape == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
    assert (prepared.original_height, prepared.original_width) == upright.shape[:2]
    np.testing.assert_allclose(prepared.pixels, upright, atol=1)  # two builds of libjpeg
    stored = Image.open(io.BytesIO(convert(data, AS_IS).data))
    assert stored.size == upright.shape[1::-1]
    assert not stored.getexif()


def test_orientation_of_a_resized_jpeg_keeps_the_right_sides(scene, encoded):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(scene(1600, 400), "JPEG", exif=exif)
    result = convert(data, ImageConfig(image_size=100))
    assert (result.width, result.height, result.original_width, result.original_height) == (25, 100, 400, 1600)


def test_broken_exif_is_no_reason_to_lose_an_image(scene, encoded):
    for exif in (b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0garbage"):
        assert convert(encoded(scene(20, 10), "JPEG", exif=exif), AS_IS).width == 20


def test_metadata_is_kept_only_on_request_and_never_in_the_stored_bytes(scene, encoded):
    exif = Image.Exif()
    exif[0x010F] = "Maker of this camera"
    exif.get_ifd(0x8825)[0x001D] = "2026:01:01"
    data = encoded(scene(20, 10), "JPEG", exif=exif, comment=b"my address")
    assert convert(data, AS_IS).exif is None
    for encode_format in ("jpg", "png", "webp"):
        result = convert(data, ImageConfig(resize_mode="no", keep_exif=True, encode_format=encode_format))
        tags = json.loads(result.exif)
        assert tags["Image Make"] == "Maker of this camera"
        assert tags["GPS GPSDate"] == "2026:01:01"
        assert b"Maker of" not in result.data
        assert b"my address" not in result.data
        assert b"Exif" not in result.data


def test_without_exif_the_column_says_so(scene, encoded):
    assert convert(encoded(scene(20, 10), "PNG"), ImageConfig(keep_exif=True)).exif == "{}"


def test_alpha_lies_on_white(encoded):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, [0, 51, 204, 255]
    for format_name, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        pixels = prepare(encoded(rgba, format_name, **options), AS_IS).pixels
        want = np.rint(rgba[..., 3:] / 255 * rgba[..., :3] + (255 - rgba[..., 3:]))
        np.testing.assert_allclose(pixels, want, atol=1)  # rounding
    grey = Image.fromarray(rgba[..., [0, 3]], "LA")
    assert prepare(encoded(grey, "PNG"), AS_IS).pixels[0].tolist() == [[255] * 3, [244] * 3, [211] * 3, [200] * 3]


def test_palettes_and_their_transparency_are_resolved(encoded):
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2, 0])
    red, green, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
    for format_name in ("PNG", "GIF", "BMP", "TIFF"):
        assert prepare(encoded(image, format_name), AS_IS).pixels[0].tolist() == [red, green, blue, red], format_name
    for format_name in ("PNG", "GIF"):
        pixels = prepare(encoded(image, format_name, transparency=1), AS_IS).pixels
        assert pixels[0].tolist() == [red, white, blue, red], format_name


def test_a_transparent_colour_without_palette_is_white(encoded):
    assert prepare(encoded(Image.new("L", (2, 1), 7), "PNG", transparency=7), AS_IS).pixels.min() == 255
    assert (
        prepare(encoded(Image.new("RGB", (2, 1), (7, 8, 9)), "PNG", transparency=(7, 8, 9)), AS_IS).pixels.min() == 255
    )
    deep = Image.fromarray(np.array([[7, 65535 // 2]], np.uint16))
    assert prepare(encoded(deep, "PNG", transparency=7), AS_IS).pixels[0].tolist() == [[255] * 3, [127] * 3]


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(encoded, format_name):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None]
    pixels = prepare(encoded(Image.fromarray(ramp), format_name), AS_IS).pixels
    assert pixels[0, :, 0].tolist() == list(range(256))
    assert np.ptp(pixels, axis=-1).max() == 0


def test_sixteen_bits_in_colour_are_scaled():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)
    colours = np.stack([ramp, ramp[::-1], np.full_like(ramp, 32768)], axis=-1)[None]
    data = cv2.imencode(".png", colours[..., ::-1])[1].tobytes()
    np.testing.assert_allclose(prepare(data, AS_IS).pixels, colours / 257, atol=1)  # Pillow drops the low byte


def test_pixels_that_are_measurements_are_refused(encoded):
    assert reason_of(encoded(Image.new("F", (3, 3), 0.5), "TIFF")) == "unsupported_format"
    assert reason_of(encoded(Image.new("I", (3, 3), 70000), "TIFF")) == "unsupported_format"
    assert reason_of(encoded(Image.new("LAB", (3, 3)), "TIFF")) == "unsupported_format"


def test_cmyk_is_converted_whether_inverted_or_not(scene, encoded):
    picture = Image.fromarray(scene(40, 30))
    for format_name in ("JPEG", "TIFF"):  # Pillow writes CMYK JPEGs inverted, as Adobe does; TIFF is never
        pixels = prepare(encoded(picture.convert("CMYK"), format_name), AS_IS).pixels
        assert np.abs(pixels.astype(int) - scene(40, 30)).mean() < 6, format_name  # JPEG's own loss


def cmyk_profile(ink: tuple[int, int, int]) -> bytes:
    """An ICC profile of a press whose first ink has the Lab colour `ink` (8-bit encoded), whose last is black."""
    identity = bytes(range(256))
    paper, black = (255, 128, 128), (0, 128, 128)
    corners = (black if corner & 1 else ink if corner & 8 else paper for corner in range(16))  # last varies fastest
    grid = b"".join(map(bytes, corners))
    matrix = struct.pack(">9i", *(65536 if at % 4 == 0 else 0 for at in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    header = struct.pack(">I4sI4s4s4s12s4s", 144 + len(table), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ", b"", b"acsp")
    illuminant = struct.pack(">3i", 63190, 65536, 54061)
    header = header.ljust(68, b"\0") + illuminant
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


@pytest.mark.parametrize("format_name", ["TIFF", "JPEG"])
def test_an_embedded_cmyk_profile_is_obeyed(encoded, format_name):
    red = (138, 208, 195)  # Lab (54, 80, 67)
    full, none = Image.new("CMYK", (16, 16), (255, 0, 0, 0)), Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    for picture, want in ((full, (255, 0, 0)), (none, (255, 255, 255))):
        data = encoded(picture, format_name, icc_profile=cmyk_profile(red))
        assert np.abs(prepare(data, AS_IS).pixels.astype(int) - want).max() <= 12  # 8-bit Lab, gamut's edge


def test_a_broken_cmyk_profile_is_ignored(encoded):
    ink = Image.new("CMYK", (8, 8), (0, 200, 0, 0))
    plain = prepare(encoded(ink, "TIFF"), AS_IS).pixels
    rgb_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"no profile at all", rgb_profile):  # a profile of another colour space is as good as broken
        np.testing.assert_array_equal(prepare(encoded(ink, "TIFF", icc_profile=profile), AS_IS).pixels, plain)


def test_grey_becomes_three_channels(encoded):
    for format_name in ("JPEG", "PNG", "TIFF", "BMP", "WEBP"):
        pixels = prepare(encoded(Image.new("L", (5, 4), 77), format_name), AS_IS).pixels
        assert pixels.shape == (4, 5, 3)
        assert np.abs(pixels.astype(int) - 77).max() <= 2, format_name
    assert prepare(encoded(Image.new("1", (5, 4), 1), "PNG"), AS_IS).pixels.min() == 255


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_of_an_animation_the_first_frame_is_kept(encoded, format_name):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    lossless = {"lossless": True} if format_name == "WEBP" else {}
    data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **lossless)
    pixels = prepare(data, AS_IS).pixels
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3  # AVIF's loss


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF", "JPEG2000"])
def test_a_truncated_file_is_a_decode_error(scene, encoded, format_name):
    data = encoded(scene(120, 90), format_name)
    assert reason_of(data[: len(data) // 2]) == "decode_error"


def test_a_jpeg_cut_short_but_properly_ended_is_a_decode_error(scene, encoded):
    data = encoded(scene(120, 90), "JPEG")
    assert reason_of(data[: len(data) // 2] + b"\xff\xd9") == "decode_error"


def test_harmless_oddities_of_a_jpeg_are_accepted(scene, encoded):
    data = encoded(scene(120, 90), "JPEG")
    plain = prepare(data, AS_IS).pixels
    for odd in (data + b"trailing bytes", data[:2] + b"\xff" * 7 + data[2:], data[:20] + b"\0\0\0" + data[20:]):
        np.testing.assert_array_equal(prepare(odd, AS_IS).pixels, plain)


def test_absurdly_many_scans_are_refused_and_a_film_behind_the_photo_is_not(scene, encoded):
    data = encoded(scene(120, 90), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    assert reason_of(data[:-2] + last_scan * 100 + b"\xff\xd9") == "decode_error"
    assert reason_of(data[:-2] + (last_scan + b"stray") * 100 + b"\xff\xd9") == "decode_error"
    assert convert(data + b"\xff\xda" * 100, AS_IS).width == 120


@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_encoding_is_readable_and_close(scene, encoded, mode, subsampling):
    data = encoded(Image.fromarray(scene(77, 51)).convert(mode), "PNG")
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    for encode_format, name, loss in (("jpg", "JPEG", 6), ("png", "PNG", 0), ("webp", "WEBP", 8)):
        config = ImageConfig(resize_mode="no", encode_format=encode_format, subsampling=subsampling)
        result = convert(data, config)
        stored = Image.open(io.BytesIO(result.data))
        assert (stored.format, stored.size) == (name, (result.width, result.height))
        assert np.abs(np.asarray(stored.convert("RGB")).astype(int) - want).mean() <= loss
        assert convert(data, config) == result


def test_what_the_output_format_cannot_hold_is_an_encode_error(encoded):
    wide = encoded(Image.new("L", (20000, 2)), "PNG")
    assert reason_of(wide, ImageConfig(resize_mode="no", encode_format="webp")) == "encode_error"
    wider = encoded(Image.new("L", (66000, 2)), "PNG")
    assert reason_of(wider) == "encode_error"
    assert convert(wider, ImageConfig(resize_mode="no", encode_format="png")).width == 66000


def test_configuration_errors_name_the_field():
    for values in ({"image_size": 0}, {"encode_quality": 101}, {"resize_mode": "crop"}, {"max_pixels": 10**9}):
        with pytest.raises(RecipeError, match=next(iter(values))):
            ImageConfig.parse(values, "test")
