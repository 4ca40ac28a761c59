"""Pictures in one folder a class: read when asked for, scaled and cut as usual, every mistake named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hwsim.config import DataError
from hwsim.data.image import batches, load_images
from hwsim.data.image_folder import Pictures, picture


def painted(file: Path, width: int = 300, height: int = 260, mode: str = "RGB", value: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, width * height).reshape(height, width)
    rgb = np.stack([ramp, np.full_like(ramp, value), 255 - ramp], -1).astype(np.uint8)
    Image.fromarray(rgb).convert(mode).save(file)
    return file


@pytest.fixture
def folder(tmp_path) -> Path:
    for part, n in (("train", 5), ("val", 2)):
        for c in ("cat", "ant"):
            for i in range(n):
                painted(tmp_path / "imagenet" / part / c / f"{i}.png", value=10 * i + (100 if c == "cat" else 0))
    return tmp_path


def test_splits_and_labels_follow_the_folders(folder):
    data = load_images("imagenet", data_dir=folder, validation_fraction=0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 4)
    assert data.classes == 2 and data.shape_CHW == (3, 224, 224)
    assert data.test.labels_N.tolist() == [0, 0, 1, 1]  # ant before cat
    assert [p.parent.name for p in data.test.images_NCHW.files] == ["ant", "ant", "cat", "cat"]
    assert sorted(data.validation.labels_N.tolist()) == [0, 1]
    assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)
    inside = load_images("imagenet", data_dir=folder / "imagenet", validation_fraction=0.2)
    assert inside.checksum == data.checksum


def test_batches_are_uint8_and_hold_the_asked_for_pictures(folder):
    data = load_images("imagenet", data_dir=folder, validation_fraction=0.2)
    seen = list(batches(data.test, 3))
    assert [tuple(x.shape) for x, _ in seen] == [(3, 3, 224, 224), (1, 3, 224, 224)]
    assert seen[0][0].dtype == torch.uint8
    assert [int(v) for x, _ in seen for v in x[:, 1, 100, 100]] == [0, 10, 100, 110]
    order = torch.Generator().manual_seed(1)
    shuffled = [int(v) for x, _ in batches(data.test, 2, order) for v in x[:, 1, 0, 0]]
    assert sorted(shuffled) == [0, 10, 100, 110] and shuffled != [0, 10, 100, 110]


def test_the_first_pictures_and_another_device_read_nothing(folder):
    data = load_images("imagenet", data_dir=folder, validation_fraction=0.2)
    for file in data.test.images_NCHW.files:
        file.unlink()
    few = data.test.first(2).to("cpu")
    assert isinstance(few.images_NCHW, Pictures) and len(few) == 2 and few.images_NCHW.shape[0] == 2


def test_a_picture_is_scaled_by_its_smaller_side_and_cut_in_the_middle(tmp_path):
    wide = picture(painted(tmp_path / "wide.png", 512, 256))
    whole = np.asarray(Image.open(tmp_path / "wide.png"))
    assert wide.shape == (3, 224, 224)
    assert np.array_equal(wide, whole[16:240, 144:368].transpose(2, 0, 1))  # 256 already: nothing is scaled
    tall = painted(tmp_path / "tall.png", 128, 301)
    scaled = np.asarray(Image.open(tall).resize((256, 602), Image.Resampling.BILINEAR))
    assert np.array_equal(picture(tall), scaled[189:413, 16:240].transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_every_picture_has_three_channels(tmp_path, mode):
    assert picture(painted(tmp_path / "a.png", mode=mode)).shape == (3, 224, 224)


def test_a_limit_keeps_every_class(folder):
    data = load_images("imagenet", data_dir=folder, limit=4, validation_fraction=0.2)
    assert len(data.train) == 4 and set(data.train.labels_N.tolist()) == {0, 1}
    assert data.checksum != load_images("imagenet", data_dir=folder, validation_fraction=0.2).checksum


def refused(**settings) -> str:
    with pytest.raises(DataError) as e:
        load_images("imagenet", **settings)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_mistakes_are_named(folder, tmp_path):
    assert "there is no such folder" in refused(data_dir=tmp_path / "nowhere")
    assert "limit is 1" in refused(data_dir=folder, limit=1)
    assert "too few" in refused(data_dir=folder, validation_fraction=0.95)
    (folder / "imagenet" / "val" / "dog").mkdir()
    assert "dog: holds no picture" in refused(data_dir=folder)
    painted(folder / "imagenet" / "val" / "dog" / "a.png")
    assert "train and val differ in their classes, among them dog" in refused(data_dir=folder)


def test_a_file_that_is_no_picture_is_named(folder):
    bad = folder / "imagenet" / "val" / "ant" / "0.png"
    bad.write_bytes(b"\x89PNG nothing")
    data = load_images("imagenet", data_dir=folder, validation_fraction=0.2)
    with pytest.raises(DataError, match="ant/0.png: cannot be read as a picture"):
        list(batches(data.test, 2))


def test_a_folder_without_classes_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    assert "has no class folders" in refused(data_dir=tmp_path)
