"""Small image folders for the tests of sources."""

import io

import numpy as np
from PIL import Image

from s3h_ext.data import load_dataset

ORIENTATION = 0x0112


def noise(seed, height=24, width=32):
    """Coarse noise: what a JPEG keeps, and no two crops of it look the same."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return np.kron(blocks, np.ones((4, 4, 1), np.uint8))[:height, :width]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def grow(root, counts=(9, 5, 3), suffix="jpg", size=(24, 32), split="train"):
    """Writes images of noise, class after class, of about ``size``."""
    number = 0
    for label, count in enumerate(counts):
        for _ in range(count):
            extra = 0 if suffix == "png" else number % 5
            image = noise(number, size[0] + extra, size[1] - extra)
            path = root / split / f"class {label}" / f"{number:03d}.{suffix}"
            save(path, image, **({} if suffix == "png" else {"quality": 90}))
            number += 1
    return root


def load(root, train=(9, 5, 3), test=(1, 1, 1), size=16, **more):
    """Writes a training and a test split of noise, and loads them."""
    grow(root, train, **more)
    grow(root, test, split="test", **more)
    return load_dataset("folder", root=root, size=size)


def jpeg(pixels, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def rotated(pixels, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return jpeg(pixels, exif=exif.tobytes())


def grow_odd(root, size=(40, 60)):
    """Writes odd images that can be read; returns file name -> expected H and W."""
    folder = root / "train" / "odd"
    folder.mkdir(parents=True)
    pixels = noise(1000, *size)
    (folder / "grey.jpg").write_bytes(jpeg(pixels, "L"))
    (folder / "cmyk.jpg").write_bytes(jpeg(pixels, "CMYK"))
    (folder / "turned.jpg").write_bytes(rotated(pixels, 6))
    (folder / "mirrored.jpg").write_bytes(rotated(pixels, 2))
    (folder / "pixel.jpg").write_bytes(jpeg(pixels[:1, :1]))
    (folder / "line.jpg").write_bytes(jpeg(pixels[:1]))
    save(folder / "alpha.png", np.dstack([pixels, pixels[..., :1]]))
    save(folder / "deep.png", (pixels[..., 0].astype(np.uint16) * 257))
    Image.fromarray(pixels).quantize(16).save(folder / "palette.gif")
    sizes = dict.fromkeys((p.name for p in folder.iterdir()), size)
    return sizes | {"turned.jpg": size[::-1], "pixel.jpg": (1, 1), "line.jpg": (1, 60)}


def grow_bad(root):
    """Writes files that are no images; returns their names."""
    folder = root / "train" / "class 0"
    folder.mkdir(parents=True, exist_ok=True)
    whole = jpeg(noise(1001, 60, 60))
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").touch()
    (folder / "gone.jpg").symlink_to("nowhere")
    # The end of a JPEG, and its beginning, but nothing in between that is one.
    (folder / "rubbish.jpg").write_bytes(whole[:300] + b"\0" * 500 + whole[-2:])
    return {"cut.jpg", "text.jpg", "empty.jpg", "gone.jpg", "rubbish.jpg"}
