import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdpl.data.check import groups_of_copies
from sdpl.data.formats import read_labels
from sdpl.data.masks import mask_labels
from sdpl.errors import UserError
from sdpl.train.splits import configured_splits


@pytest.fixture
def splits(scenes):
    return [scenes / "annotations" / f"instances_{split}.json" for split in ("train", "test")]


@pytest.fixture
def photos(scenes, tmp_path):
    """A table of four scenes: photos(rows) -> path; rows are (file, cat, dog), the files 0.jpg to 3.jpg exist."""
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes((scenes / "train" / f"{i:06d}.jpg").read_bytes())

    def write(name, *rows):
        (tmp_path / name).write_text("image,cat,dog\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))
        return tmp_path / name

    return write


def found(sdpl, tmp_path, *words):
    """The command's exit status and its findings, {(what, split): items}."""
    result = sdpl("data", "check", *words, "--json", tmp_path / "check.json")
    findings = json.loads((tmp_path / "check.json").read_text())["findings"]
    return result, {(f["what"], f["split"]): f["items"] for f in findings}


def test_clean_data_has_status_0_and_its_counts_are_shown(sdpl, splits, tmp_path):
    result, findings = found(sdpl, tmp_path, *splits)
    assert result.exit_code == 0
    assert findings == {}
    assert "kinds of problems: 0, of warnings: 0" in result.stdout
    content = json.loads((tmp_path / "check.json").read_text())
    labels = read_labels(splits[0]).labels
    for c, row in enumerate(content["counts"][str(splits[0])]):
        assert (row["positive"], row["negative"], row["unknown"]) == (
            (labels[:, c] == 1).sum(),
            (labels[:, c] == -1).sum(),
            0,
        )
    assert list(content["images"].values()) == [24, 8]


def test_everything_wrong_is_found(sdpl, photos, tmp_path):
    with Image.open(tmp_path / "0.jpg") as image:
        image.resize((90, 90)).save(tmp_path / "small.png")
        image.save(tmp_path / "poor.jpg", quality=40)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:2000])
    train = photos("train.csv", ("0.jpg", 1, ""), ("1.jpg", 1, 0), ("small.png", 1, ""), ("cut.jpg", "", ""))
    val = photos("val.csv", ("poor.jpg", -1, 1), ("2.jpg", 1, ""), ("gone.jpg", 1, -1))
    result, findings = found(sdpl, tmp_path, train, val)
    assert result.exit_code == 1
    assert "kinds of problems: 4, of warnings: 3" in result.stdout
    copies = f"{tmp_path / '0.jpg'} = {tmp_path / 'small.png'} = {tmp_path / 'poor.jpg'}"
    unreadable = findings.pop(("images that cannot be read", str(train)))
    assert len(unreadable) == 1
    assert "cut.jpg: is damaged or truncated" in unreadable[0]
    assert findings == {
        ("images that cannot be read", str(val)): [f"{tmp_path / 'gone.jpg'}: no such image."],
        ("times the same picture in different splits", ""): [copies],
        ("categories without any known label", str(train)): ["dog"],
        ("categories without a known negative; if 0 was meant as absent, write -1", str(train)): ["cat"],
        ("images without any known label", str(train)): [str(tmp_path / "cut.jpg")],
        ("categories with positives here, but none in the training set", str(val)): ["dog"],
    }
    for word in ("train.csv: 4 images", "gone.jpg", "problem", "warning"):
        assert word in result.stdout.replace("\n", "")


def test_copies_within_a_split_and_one_sided_categories_are_warnings(sdpl, photos, tmp_path):
    (tmp_path / "again.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    train = photos("train.csv", ("0.jpg", -1, 1), ("again.jpg", -1, -1))
    result, findings = found(sdpl, tmp_path, train)
    assert result.exit_code == 0
    assert findings == {
        ("times the same picture more than once", str(train)): [f"{tmp_path / '0.jpg'} = {tmp_path / 'again.jpg'}"],
        ("categories without a known positive", str(train)): ["cat"],
    }


def test_different_pictures_are_no_copies(scenes):
    rng = np.random.RandomState(0)
    pictures = rng.uniform(0, 255, (50, 192)).astype(np.float32)
    assert list(groups_of_copies(pictures)) == []
    assert list(groups_of_copies(pictures[:1])) == []
    near = pictures[:1] + rng.normal(0, 2, (1, 192)).astype(np.float32)
    (group,) = groups_of_copies(np.concatenate([pictures, near]))
    assert group.tolist() == [0, 50]


def test_a_configuration_names_the_splits(fails, config, splits, tmp_path):
    path = config(data={"val": {"annotations": str(splits[1])}})
    assert "says itself where its images are and of what format" in fails("data", "check", path, "--images", tmp_path)
    assert list(configured_splits(path)) == [str(split) for split in splits]


def test_splits_must_agree_and_differ(fails, splits, tmp_path):
    content = json.loads(splits[1].read_text())
    content["categories"][0]["name"] = "nought"
    (tmp_path / "renamed.json").write_text(json.dumps(content))
    assert "its categories are not those of the model or configuration" in fails(
        "data", "check", splits[0], tmp_path / "renamed.json"
    )
    assert "is named twice" in fails("data", "check", splits[0], splits[0])
    assert "--images is given 1 times for 2 label files" in fails("data", "check", *splits, "--images", tmp_path)
    assert "no such annotation file" in fails("data", "check", tmp_path / "gone.csv")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_mask_writes_what_the_configuration_would_draw(sdpl, splits, scenes, tmp_path, suffix):
    out = tmp_path / f"partial.{suffix}"
    result = sdpl("data", "mask", splits[0], "--proportion", "0.3", "--seed", "5", "--out", out)
    assert result.exit_code == 0, result.output
    full, partial = read_labels(splits[0]), read_labels(out, scenes / "train")
    np.testing.assert_array_equal(partial.labels, mask_labels(full.labels, 0.3, 5))
    assert (partial.images, partial.categories) == (full.images, full.categories)
    assert f"{(partial.labels != 0).mean():.1%} of labels known" in result.stdout
    assert f"images: {scenes / 'train'}" in result.stdout


def test_a_table_above_its_images_is_read_without_their_folder(sdpl, scenes, tmp_path):
    (tmp_path / "photos").mkdir()
    images = sorted((scenes / "test").glob("*.jpg"))[:2]
    rows = [f"photos/{Path(shutil.copy(image, tmp_path / 'photos')).name},1,-1" for image in images]
    (tmp_path / "labels.csv").write_text("\n".join(["image,dog,cat", *rows]))
    result = sdpl("data", "mask", tmp_path / "labels.csv", "--proportion", "0.5", "--out", tmp_path / "part.csv")
    assert result.output.endswith("part.csv\n")  # no folder to name
    assert read_labels(tmp_path / "part.csv").images == read_labels(tmp_path / "labels.csv").images


def test_mask_never_overwrites_by_accident(sdpl, fails, splits, tmp_path):
    out = tmp_path / "p.csv"
    words = ("data", "mask", splits[0], "--proportion", "0.5", "--out", out)
    assert sdpl(*words).exit_code == 0
    before = out.read_bytes()
    assert "p.csv exists: add --force to replace it" in fails(*words, "--seed", "1")
    assert out.read_bytes() == before
    assert sdpl(*words, "--seed", "1", "--force").exit_code == 0
    assert out.read_bytes() != before
    assert "a table ends in .csv, .jsonl or .parquet" in fails(*words[:-1], tmp_path / "p.json")
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails(*words[:-1], tmp_path / "file" / "p.csv")
    assert sdpl("data", "mask", splits[0], "--proportion", "0", "--out", tmp_path / "q.csv").exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "p.csv"]


def test_a_wrong_configuration_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {trian: {}}")
    with pytest.raises(UserError, match=r"unknown key 'data.trian'; did you mean 'train'\?"):
        configured_splits(tmp_path / "c.yaml")


def test_a_table_of_another_convention_is_suspected(sdpl, photos, tmp_path):
    rows = [("0.jpg", 1, 0), ("1.jpg", 1, 1), ("2.jpg", 0, 1), ("3.jpg", 0, 0)]
    for i in range(4, 12):
        (tmp_path / f"{i}.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    table = [*rows, ("4.jpg", -1, -1), *((f"{i}.jpg", 0, 0) for i in range(5, 12))]
    _, findings = found(sdpl, tmp_path, photos("zeros.csv", *table))
    ((what, _),) = [key for key in findings if "data.values" in key[0] and "uncertain" in key[0]]
    assert "mostly 0 and few -1" in what
    blank = [(name, cat or "", dog or "") for name, cat, dog in table]
    _, findings = found(sdpl, tmp_path, photos("blanks.csv", *blank))
    assert not [key for key in findings if "uncertain" in key[0]]


def test_images_without_labels_and_categories_only_in_val_are_named(sdpl, photos, tmp_path):
    train = photos("train.csv", ("0.jpg", 1, -1), ("1.jpg", "", ""))
    val = photos("val.csv", ("2.jpg", 1, 1), ("3.jpg", -1, -1))
    _, findings = found(sdpl, tmp_path, train, val)
    assert findings["images without any known label", str(train)] == [str(tmp_path / "1.jpg")]
    assert findings["categories with positives here, but none in the training set", str(val)] == ["dog"]
