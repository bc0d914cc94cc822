import numpy as np
import pytest
import torch
from PIL import Image

from s3h_ext.data import EvaluationBatches, ImageSet, ResidentPixels
from s3h_ext.data.sets.folders import EXTENSIONS, read_folder
from s3h_ext.data.views.pictures import Preprocessing, find_pictures, read_picture

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def pixels(height, width, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("recipe", ["none", "evaluation"])
def test_an_image_is_prepared_as_the_evaluation_does(recipe):
    side = 40 if recipe == "none" else 60
    images = np.stack([pixels(40, side, seed) for seed in range(3)])
    image_set = ImageSet(images, np.zeros(3, np.int64))
    shown = ResidentPixels(image_set, mean=MEAN, std=STD)
    batches = EvaluationBatches(shown, batch_size=3, recipe=recipe)
    shape = (40, side, 3) if recipe == "none" else (224, 224, 3)
    prepare = Preprocessing(shape, MEAN, STD, recipe)
    assert torch.equal(prepare(list(images)), next(iter(batches)).images[0])


def test_another_size_is_its_central_square_as_pillow_resizes_it():
    image = pixels(50, 80)
    prepare = Preprocessing((32, 32, 3), (0.0,) * 3, (1.0,) * 3)
    square = Image.fromarray(image).crop((15, 0, 65, 50))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR))
    found = prepare([image])[0].permute(1, 2, 0).numpy() * 255
    # Pillow rounds to whole levels, twice.
    assert np.abs(found - expected).max() <= 1.01


def test_sizes_may_differ_and_small_images_are_enlarged():
    prepare = Preprocessing((32, 32, 3), MEAN, STD)
    images = [pixels(*size) for size in ((1, 1), (32, 32), (7, 90))]
    together = prepare(images)
    assert together.shape == (3, 3, 32, 32)
    for one, image in zip(together, images, strict=True):
        assert torch.equal(one, prepare([image])[0])


def test_the_description_says_what_is_done():
    about = Preprocessing((32, 32, 3), MEAN, STD).describe()
    assert about["crop"] == "centred square"
    assert about["crop_share_of_shorter_side"] == 1.0
    about = Preprocessing((224, 224, 3), MEAN, STD, "evaluation").describe()
    assert about["crop_share_of_shorter_side"] == 224 / 256
    assert (about["height"], about["width"]) == (224, 224)
    about = Preprocessing((20, 30, 1), (0.5,), (1.0,)).describe()
    assert about["crop"] == "whole image"


def test_modes_of_files(tmp_path):
    image = Image.fromarray(pixels(6, 9))
    for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        image.convert(mode).save(path)
        assert read_picture(path, 3).shape == (6, 9, 3)
        assert read_picture(path, 1).shape == (6, 9, 1)
    assert np.array_equal(read_picture(tmp_path / "RGBA.png", 3), np.asarray(image))


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (9, 6)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg", 3).shape == (9, 6, 3)


def test_bad_files_say_what_is_wrong(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    whole = tmp_path / "whole.png"
    Image.fromarray(pixels(30, 30)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:500])
    for name, message in (
        ("text.png", "no image of a known format"),
        ("cut.png", "truncated"),
    ):
        with pytest.raises(ValueError, match=message):
            read_picture(tmp_path / name, 3)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_picture(tmp_path / "none.png", 3)
    with pytest.raises(ValueError, match="a folder"):
        read_picture(tmp_path, 3)
    with pytest.raises(ValueError, match="File name too long"):
        read_picture(tmp_path / ("a" * 300), 3)


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("a/z.PNG", "a/deep/ü .jpeg", "a/notes.txt", "odd.txt"):
        (tmp_path / name).touch()
    too_long = tmp_path / ("a" * 300)
    found = list(find_pictures([too_long, tmp_path / "odd.txt", tmp_path / "a"]))
    assert found[0] == too_long
    names = [path.relative_to(tmp_path).as_posix() for path in found[1:]]
    assert names == ["odd.txt", "a/deep/ü .jpeg", "a/z.PNG"]


def test_what_is_found_in_a_folder_is_what_training_finds(tmp_path):
    for place in ("set/a", "set/b/.cache", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
    for extension in sorted(EXTENSIONS):
        (tmp_path / "set" / "a" / f"0{extension.upper()}").touch()
    for name in ("set/a/._0.jpg", "set/b/.cache/1.jpg", "elsewhere/2.png"):
        (tmp_path / name).touch()
    (tmp_path / "set" / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "b" / "loop").symlink_to(".")
    (tmp_path / "set" / "b" / "itself").symlink_to("itself")
    found = list(find_pictures([tmp_path / "set"]))
    files = read_folder(tmp_path / "set", ["a", "b"])
    assert found == sorted(files.path(i) for i in range(len(files)))
    assert len(found) == len(EXTENSIONS) + 1
    assert found[-1] == tmp_path / "set" / "b" / "linked" / "2.png"
    hidden = tmp_path / "set" / "a" / "._0.jpg"
    assert list(find_pictures([hidden])) == [hidden]
