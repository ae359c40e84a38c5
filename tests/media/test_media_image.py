"""Every kind of picture becomes the RGB that a person would see."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from media_builders import chunk, encoded, gif, noise, png, tiff, tiff_tags
from PIL import Image, ImageCms

from edgevlm.errors import MediaTooLarge, UnreadableMedia
from edgevlm.media import MediaLimits
from edgevlm.media.image import decode, from_array, from_pil, pixels_key

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
LOSSLESS = {
    "BMP": {},
    "GIF": {},
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True, "exact": True},
}


def one(pixels: np.ndarray[Any, Any]) -> list[int]:
    """The colour of a picture that has one."""
    assert (pixels == pixels[0, 0]).all()
    return list(map(int, pixels[0, 0]))


def colours(pixels: np.ndarray[Any, Any]) -> list[Any]:
    return [tuple(map(int, colour)) for colour in pixels.reshape(-1, 3)]


@pytest.mark.parametrize("format_name", LOSSLESS)
def test_lossless_formats_keep_every_pixel(format_name: str) -> None:
    image = noise(channels=3).quantize(64).convert("RGB")
    pixels = decode(encoded(image, format_name, **LOSSLESS[format_name]))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, np.asarray(image))


def test_jpeg_is_what_pillow_decodes() -> None:
    data = encoded(noise(channels=3), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


# Where red, green, blue and white stand, by EXIF orientation, if they are stored in this
# order (top left, top right, bottom left, bottom right). From the EXIF 2.32 definition.
UPRIGHT = {
    1: "RGBW",
    2: "GRWB",
    3: "WBGR",
    4: "BWRG",
    5: "RBGW",
    6: "BRWG",
    7: "WGBR",
    8: "GWRB",
}


def _corners(letters: str) -> Image.Image:
    colour = {"R": RED, "G": GREEN, "B": BLUE, "W": WHITE}
    image = Image.new("RGB", (2, 2))
    image.putdata([colour[letter] for letter in letters])
    return image.resize((48, 32), Image.Resampling.NEAREST)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(format_name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if format_name == "JPEG" else LOSSLESS[format_name]
    pixels = decode(encoded(_corners("RGBW"), format_name, exif=exif, **options))
    height, width = pixels.shape[:2]
    assert (width, height) == ((48, 32) if orientation < 5 else (32, 48))
    seen = pixels[[8, 8, -8, -8], [8, -8, 8, -8]].astype(int)
    expected = np.asarray(_corners(UPRIGHT[orientation]))[[8, 8, -8, -8], [8, -8, 8, -8]]
    assert np.abs(seen - expected).max() < 12


def test_a_broken_exif_block_costs_nothing_but_itself() -> None:
    # Its first entry claims text far outside the block.
    broken = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x010F, 2, 999, 5000)
    image = Image.new("RGB", (8, 8), RED)
    image.info["dpi"] = (72, 72)
    data = encoded(image, "JPEG", exif=broken, dpi=(72, 72), quality=95)
    assert decode(data).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("1", (3, 2), 1), WHITE),
        (Image.new("L", (3, 2), 99), (99, 99, 99)),
        (Image.new("LA", (3, 2), (100, 255)), (100, 100, 100)),
        (Image.new("LA", (3, 2), (100, 0)), WHITE),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 128)), (255, 127, 127)),
        (Image.new("RGBX", (3, 2), (9, 8, 7, 0)), (9, 8, 7)),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 128)).convert("RGBa"), (255, 127, 127)),
        (Image.new("LA", (3, 2), (0, 128)).convert("La"), (127, 127, 127)),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), RED),
        (Image.new("RGB", (3, 2), RED).convert("YCbCr"), (254, 0, 0)),
        (Image.new("RGB", (3, 2), BLUE).convert("HSV"), BLUE),
        (Image.new("I;16", (3, 2), 32896), (128, 128, 128)),
        (Image.new("I;16B", (3, 2), 65535), WHITE),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_pillow_mode(image: Image.Image, colour: tuple[int, int, int]) -> None:
    before = image.tobytes()
    assert one(from_pil(image)) == list(colour)
    assert image.tobytes() == before


@pytest.mark.parametrize("format_name", ["PNG", "GIF", "WEBP", "TIFF"])
def test_transparent_pixels_are_white(format_name: str) -> None:
    image = Image.new("RGBA", (4, 2), (*BLUE, 255))
    image.paste((*RED, 0), (0, 0, 2, 2))
    pixels = decode(encoded(image, format_name, **LOSSLESS[format_name]))
    assert colours(pixels) == [WHITE, WHITE, BLUE, BLUE] * 2


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [(None, [RED, BLUE]), (0, [WHITE, BLUE]), (b"\xff\x00", [RED, WHITE])],
)
def test_palettes(transparency: Any, expected: list[Any]) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1])
    options = {} if transparency is None else {"transparency": transparency}
    assert colours(decode(encoded(image, "PNG", **options))) == expected


def test_one_colour_of_a_grey_png_may_mean_transparent() -> None:
    clear = chunk(b"tRNS", struct.pack(">H", 7))
    assert colours(decode(png((2, 1), b"\0\x07\x08", colour=0, before=clear))) == [WHITE, (8, 8, 8)]
    deep = chunk(b"tRNS", struct.pack(">H", 1000))
    rows = b"\0" + struct.pack(">2H", 1000, 2570)
    pixels = decode(png((2, 1), rows, depth=16, colour=0, before=deep))
    assert colours(pixels) == [WHITE, (10, 10, 10)]


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6], ids=["grey", "rgb", "grey-a", "rgba"])
def test_sixteen_bit_png_is_scaled(colour_type: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    alpha = colour_type >= 4
    row = b"\0"
    for value in (0, 0x4040, 0xFFFF):
        samples = [value] * (channels - alpha) + [0xFFFF] * alpha
        row += struct.pack(f">{channels}H", *samples)
    pixels = decode(png((3, 1), row, depth=16, colour=colour_type))
    assert pixels[0, :, 0].tolist() == [0, 0x40, 255]


@pytest.mark.parametrize(
    ("bits", "signed", "body", "expected"),
    [
        (12, False, b"\x00\x08\x01\xff\xf0", [0, 128, 255]),
        (16, False, struct.pack("<3H", 0, 32896, 65535), [0, 128, 255]),
        (16, True, struct.pack("<3h", -100, 0, 100), [0, 128, 255]),
        (32, True, struct.pack("<3i", 0, 128, 255), [0, 128, 255]),
        (32, True, struct.pack("<3i", 0, 32896, 65535), [0, 128, 255]),
        (32, True, struct.pack("<3i", -1000, 0, 1000), [0, 128, 255]),
        (32, False, struct.pack("<3I", 0, 2**31, 2**32 - 1), [0, 128, 255]),
    ],
)
def test_deep_grey_tiff_is_scaled_not_clipped(
    bits: int, signed: bool, body: bytes, expected: list[int]
) -> None:
    tags = tiff_tags((3, 1), bits)
    if signed:
        tags[339] = (3, 1, 2)
    assert decode(tiff(tags, body))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 128, 255], [0, 128, 255]),
        ([0, 32896, 65535], [0, 128, 255]),
        ([-3e38, 0, 3e38], [0, 128, 255]),
        ([np.nan, 0.2, np.inf], [0, 51, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
        ([-7, -7, -7], [0, 0, 0]),
    ],
)
def test_float_grey_is_scaled_not_clipped(values: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert decode(data)[0, :, 0].tolist() == expected


def test_cmyk_jpeg_of_adobe_is_inverted_back() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in data
    assert np.abs(np.array(one(decode(data))) - RED).max() <= 3


def test_ycck_jpeg() -> None:
    # Stored as Y 200, Cb 128, Cr 128, K 255, which is CMY 55 and K 255, all inverted by
    # Adobe's rule: ink 200 of three colours and no black, so 55 of light.
    data = encoded(Image.new("CMYK", (16, 16), (55, 127, 127, 0)), "JPEG", quality=100)
    marker = data.index(b"Adobe")
    ycck = data[: marker + 11] + b"\x02" + data[marker + 12 :]
    assert one(decode(ycck)) == pytest.approx([55, 55, 55], abs=3)


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_frame_of_an_animation_is_read(format_name: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in (GREEN, RED, BLUE)]
    options = LOSSLESS[format_name]
    data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    assert one(decode(data)) == list(GREEN)


def test_a_gif_frame_may_stand_inside_its_canvas() -> None:
    pixels = decode(gif((3, 2), (1, 0, 2, 1), b"\1\0"))
    assert colours(pixels) == [RED, BLUE, RED, RED, RED, RED]


def test_an_icc_profile_is_converted_to_srgb() -> None:
    # The sRGB profile with its red and blue primaries exchanged, and another name.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    renamed = bytes(profile).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    image = Image.new("RGB", (4, 4), RED)
    swapped = one(decode(encoded(image, "PNG", icc_profile=renamed)))
    assert swapped == pytest.approx(BLUE, abs=2)
    assert one(decode(encoded(image, "PNG", icc_profile=b"not a profile"))) == list(RED)


def test_the_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = noise(channels=3)
    pixels = decode(encoded(image, "PNG", icc_profile=profile))
    np.testing.assert_array_equal(pixels, np.asarray(image))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3), 9, np.uint8), (9, 9, 9)),
        (np.full((2, 3, 1), 9, np.uint8), (9, 9, 9)),
        (np.full((2, 3, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
        (np.full((2, 3, 4), (255, 0, 0, 0), np.uint8), WHITE),
        (np.full((2, 3), 32896, np.uint16), (128, 128, 128)),
        (np.full((2, 3, 3), (0, 257, 65535), np.uint16), (0, 1, 255)),
        (np.full((2, 3, 3), (0, 0.5, 1), np.float64), (0, 128, 255)),
        (np.full((2, 3, 4), (1, 0, 0, 0.5), np.float16), (255, 127, 127)),
        (np.full((2, 3), True), WHITE),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_arrays(array: np.ndarray[Any, Any], expected: tuple[int, int, int]) -> None:
    pixels = from_array(array)
    assert pixels.shape == (2, 3, 3)
    assert pixels.flags.c_contiguous
    assert one(pixels) == list(expected)
    assert not np.shares_memory(pixels, array)


def test_a_strided_array_is_read_in_its_own_order() -> None:
    array = np.asarray(noise(channels=3))
    flipped = array[::-1, ::2, ::-1]
    np.testing.assert_array_equal(from_array(flipped), flipped)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 2, 2), np.uint8), "shape [2, 2, 2]"),
        (np.zeros((3, 224, 224), np.uint8), "channels"),
        (np.zeros(5, np.uint8), "shape [5]"),
        (np.zeros((1, 2, 2, 3), np.uint8), "shape [1, 2, 2, 3]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), np.complex64), "complex64"),
        (np.array([["a"]]), "<U1"),
        (np.array([[None]]), "object"),
        (np.full((4, 4), 255.0), "from 255 to 255"),
        (np.full((4, 4), np.nan), "nan"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(UnreadableMedia) as caught:
        from_array(array)
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_pixels_over_the_limit_are_refused_in_memory_too() -> None:
    limits = MediaLimits(max_pixels=99)
    with pytest.raises(MediaTooLarge, match="10 x 10"):
        from_array(np.zeros((10, 10, 3), np.uint8), limits)
    with pytest.raises(MediaTooLarge, match="10 x 10"):
        from_pil(Image.new("RGB", (10, 10)), limits)


def test_a_pillow_image_that_fails_to_load_is_a_media_error() -> None:
    data = encoded(noise(), "PNG")
    with pytest.raises(UnreadableMedia, match="PNG that can't be decoded"):
        from_pil(Image.open(io.BytesIO(data[: len(data) // 2])))
    with pytest.raises(UnreadableMedia, match="no pixels"):
        from_pil(Image.new("RGB", (0, 5)))


def test_the_key_tells_pixels_and_shapes_apart() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    changed = pixels.copy()
    changed[1, 3, 2] ^= 1
    keys = {pixels_key(p) for p in (pixels, changed, pixels.reshape(4, 2, 3))}
    assert len(keys) == 3
    assert pixels_key(np.asfortranarray(pixels)) == pixels_key(pixels)
    assert len(pixels_key(pixels)) == 64
