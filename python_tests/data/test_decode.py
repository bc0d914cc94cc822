"""Files to pixels: every odd kind of image, and files that are none."""

import errno
import io
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s3h_ext.data import ImageFiles
from s3h_ext.data.source.dali import _for_dali
from s3h_ext.data.source.decode import (
    PillowDecoder,
    Unreadable,
    UnreadableImageError,
    decode_image,
)

from .photographs import ORIENTATION, grow_bad, grow_odd, jpeg, noise, rotated


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def test_rgb_is_taken_as_it_is():
    pixels = noise(0)
    image = decode_image(encoded(pixels))
    assert image.dtype == torch.uint8
    assert np.array_equal(image, pixels)
    image.add_(1)  # its own memory


def test_grey_is_widened_and_sixteen_bits_are_cut_to_eight():
    grey = noise(0)[..., 0]
    height, width = grey.shape
    deep = grey.astype(np.uint16) * 256 + 77
    grey_map = b"P5 %d %d 65535\n" % (width, height) + deep.astype(">u2").tobytes()
    for content in (encoded(grey), encoded(deep), grey_map):
        image = decode_image(content)
        assert np.array_equal(image, np.repeat(grey[..., None], 3, axis=2))


def test_what_pillow_refuses_for_its_size_does_not_go_to_dali(monkeypatch):
    content = jpeg(noise(0, 60, 40))
    for limit, taken in ((1200, True), (1199, False), (None, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert _for_dali(content) == taken
        if not taken:
            with pytest.raises(Image.DecompressionBombError):
                decode_image(content)


SIGNED = Image.fromarray(np.zeros((4, 4), np.uint16))


@pytest.mark.parametrize(
    ("image", "tags", "kind"),
    [
        (Image.new("I", (4, 4)), {}, "whole numbers of 32 bits or with a sign"),
        (SIGNED, {339: 2}, "whole numbers of 32 bits or with a sign"),
        (Image.new("F", (4, 4)), {}, "floating-point"),
    ],
    ids=["32 bits", "signed", "float"],
)
def test_numbers_without_a_range_are_refused_for_what_they_are(image, tags, kind):
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", tiffinfo=tags)
    with pytest.raises(ValueError, match=f"without a sign, not {kind}"):
        decode_image(buffer.getvalue())


def test_damaged_tiffs_write_nothing_to_the_terminal(capfd):
    whole = bytearray(encoded(noise(0, 64, 64), "TIFF", compression="tiff_lzw"))
    for place in range(100, 2000):
        whole[place] ^= 0x5A
    with pytest.raises(OSError, match="decoder error"):
        decode_image(bytes(whole))
    assert capfd.readouterr().err == ""


def test_alpha_is_dropped():
    pixels = noise(0)
    image = decode_image(encoded(np.dstack([pixels, 255 - pixels[..., :1]])))
    assert np.array_equal(image, pixels)


def test_cmyk_becomes_the_rgb_it_was():
    pixels = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    image = decode_image(jpeg(pixels, "CMYK"))
    assert (image.int() - torch.from_numpy(pixels).int()).abs().max() <= 3


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
        (99, lambda x: x),
    ],
)
def test_images_are_turned_upright(orientation, turn):
    pixels = noise(0)
    plain = decode_image(jpeg(pixels)).numpy()
    image = decode_image(rotated(pixels, orientation))
    assert np.array_equal(image, turn(plain))


# Resolution, its unit and the date as what they may not be: no sense for a writer.
ODD_TAGS = {
    0x011A: (7, 4, b"abcd"),
    0x0128: (2, 2, b"a\0\0\0"),
    0x0132: (3, 1, b"\1\0\0\0"),
}


@pytest.mark.parametrize("tag", ODD_TAGS)
def test_an_odd_tag_beside_the_orientation_does_no_harm(tag):
    kind, count, value = ODD_TAGS[tag]
    entries = struct.pack("<HHII", ORIENTATION, 3, 1, 6)
    entries += struct.pack("<HHI", tag, kind, count) + value
    table = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    pixels = noise(0, 20, 30)
    image = decode_image(jpeg(pixels, exif=table))
    assert np.array_equal(image, decode_image(jpeg(pixels)).rot90(-1, (0, 1)))


def test_orientation_is_that_of_exif_and_of_no_other_metadata():
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode_image(jpeg(noise(0, 20, 30), xmp=packet)).shape == (20, 30, 3)


def test_postscript_is_no_image():
    """Pillow would have Ghostscript run it."""
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    with pytest.raises(ValueError, match="no image of a known format"):
        decode_image(page)


def test_decoder_gives_images_in_order_and_none_for_what_is_no_image(tmp_path):
    sizes, bad = grow_odd(tmp_path), grow_bad(tmp_path)
    names = [f"odd/{name}" for name in sizes] + [f"class 0/{name}" for name in bad]
    files = ImageFiles.of(tmp_path / "train", names, [0] * len(names))
    unreadable = Unreadable("skip")
    decoder = PillowDecoder(files, unreadable, workers=3)
    order = np.random.default_rng(0).permutation(len(names))
    batches = np.array_split(order, 4)
    images = [i for batch in decoder.images(batches, largest=9) for i in batch]
    for position, image in zip(order.tolist(), images, strict=True):
        name = names[position].partition("/")[2]
        if name in bad:
            assert image is None
        else:
            assert image.shape == (*sizes[name], 3)
    assert {path.rpartition("/")[2] for path in unreadable.errors} == bad
    cut = files.path(names.index("class 0/cut.jpg"))
    assert "truncated" in unreadable.errors[str(cut)]


@pytest.mark.parametrize("name", ["cut.jpg", "text.jpg", "empty.jpg", "gone.jpg"])
def test_the_first_file_that_is_no_image_ends_it_by_its_path(tmp_path, name):
    grow_bad(tmp_path)
    files = ImageFiles.of(tmp_path / "train" / "class 0", [name], [0])
    decoder = PillowDecoder(files, Unreadable("error"))
    said = f"class 0/{name}: expected an image"
    with pytest.raises(UnreadableImageError, match=said):
        next(decoder.images([np.array([0])], largest=1))


def test_threads_end_with_the_iteration(tmp_path):
    grow_odd(tmp_path)
    files = ImageFiles.of(tmp_path / "train" / "odd", ["grey.jpg"] * 50, [0] * 50)
    decoder = PillowDecoder(files, Unreadable(), workers=2)
    batches = decoder.images(np.arange(50).reshape(10, 5), largest=5)
    next(batches)
    assert any(t.name.startswith("s3h-decode") for t in threading.enumerate())
    batches.close()
    assert not any(t.name.startswith("s3h-decode") for t in threading.enumerate())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="unreadable: expected one of .* got 'drop'"):
        Unreadable("drop")
    with pytest.raises(ValueError, match="workers: expected a whole .* >= 0, got -1"):
        PillowDecoder(ImageFiles.of(".", [], []), Unreadable(), workers=-1)


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()]
)
def test_what_the_machine_lacks_is_not_the_fault_of_a_file(
    tmp_path, monkeypatch, error
):
    def fail(path):
        raise error

    grow_bad(tmp_path)
    files = ImageFiles.of(tmp_path / "train" / "class 0", ["000.jpg"], [0])
    unreadable = Unreadable("skip")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(type(error)):
        next(PillowDecoder(files, unreadable).images([np.array([0])], largest=1))
    assert unreadable.errors == {}
