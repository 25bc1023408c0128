"""A bundle that was changed, cut, replaced or made by a newer sdpl is refused, with one line."""

import json
import shutil

import pytest

from sdpl.bundle import PROOF, Bundle, may_replace, sha256
from sdpl.errors import UserError
from sdpl.manifest import FORMAT_VERSION


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy.sdpl")


def edit_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.update(changes)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_manifest_says_everything_about_the_model(bundle):
    manifest = Bundle.open(bundle).manifest
    assert manifest.categories[3] == "three"
    assert manifest.preprocessing.image_size == 64
    assert manifest.probability == "sigmoid"
    assert manifest.config["model"]["backbone"] == "test-RN"
    assert manifest.map_size == (2, 2)
    target = manifest.targets["cpu:fp32"]
    assert target.files == {"model": "model.onnx"}
    assert target.status == "verified"
    assert {"torch", "onnx", "onnxruntime"} <= target.built_with.keys()
    assert target.verification.images == 6
    assert target.verification.max_score_difference <= 1e-4
    assert set(manifest.files) == {"model.onnx", PROOF}


def test_nothing_of_the_exporting_machine_is_in_it(bundle):
    for name in ("model.onnx", "manifest.json"):
        content = (bundle / name).read_bytes()
        assert b"site-packages" not in content
        assert b"sdpl/train" not in content
        assert b"/tmp" not in content
    config = Bundle.open(bundle).manifest.config
    assert config["model"]["backbone_config"] == "backbone.json"
    assert "data" not in config


@pytest.mark.parametrize("name", ["model.onnx", PROOF])
def test_a_changed_byte_is_found(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: is not the file that was exported"):
        Bundle.open(copy).file(name)


def test_a_missing_file_is_named(copy):
    (copy / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"model\.onnx: is missing from the bundle"):
        Bundle.open(copy).file("model.onnx")


def test_a_file_that_the_manifest_does_not_list_is_not_opened(copy):
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"lists no 'extra\.bin'"):
        Bundle.open(copy).file("extra.bin")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "C:\\x", ""])
def test_paths_that_leave_the_directory_are_refused(copy, name):
    edit_manifest(copy, files={name: {"sha256": "0" * 64, "size": 1}})
    with pytest.raises(UserError, match="leaves the bundle"):
        Bundle.open(copy)


def test_a_link_that_leaves_the_directory_is_refused(copy, tmp_path):
    shutil.move(copy / "model.onnx", tmp_path / "elsewhere.onnx")
    (copy / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(UserError, match="points outside the bundle"):
        Bundle.open(copy).file("model.onnx")


def test_a_newer_format_says_update(copy):
    edit_manifest(copy, format_version=FORMAT_VERSION + 1, something_new=1)
    with pytest.raises(UserError, match=f"format version is {FORMAT_VERSION + 1}.*update sdpl"):
        Bundle.open(copy)


def test_a_damaged_manifest_is_one_line(copy):
    (copy / "manifest.json").write_text('{"format_version": 3, "categories":')
    with pytest.raises(UserError, match=r"manifest\.json: .*Export the checkpoint again"):
        Bundle.open(copy)
    (copy / "manifest.json").write_text('{"format_version": 3}')
    with pytest.raises(UserError, match="sdpl_version: Field required"):
        Bundle.open(copy)


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(UserError, match="no such bundle"):
        Bundle.open(tmp_path / "gone.sdpl")
    with pytest.raises(UserError, match="is not a bundle"):
        Bundle.open(tmp_path)


def test_a_damaged_proof_is_one_line(copy):
    (copy / PROOF).write_bytes(b"12345678{}")
    manifest = json.loads((copy / "manifest.json").read_text())
    edit_manifest(copy, files={**manifest["files"], PROOF: {"sha256": sha256(copy / PROOF), "size": 10}})
    with pytest.raises(UserError, match=r"cannot be read .*Export the checkpoint again"):
        Bundle.open(copy).proof()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": [0.5]}, "needs one threshold for each category"),
        ({"categories": ["a"] * 10}, "every category once"),
        ({"format_version": -1}, "its format version is -1, this sdpl reads 3 to 4: export the checkpoint again"),
        ({"map_size": [0, 2]}, "map_size.0: Input should be greater than 0"),
        ({"files": {"a\0": {"sha256": "0" * 64, "size": 1}}}, "leaves the bundle"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(copy, changes, message):
    edit_manifest(copy, **changes)
    with pytest.raises(UserError, match=message):
        Bundle.open(copy)


def test_only_a_bundle_and_nothing_else_may_be_replaced(copy, tmp_path):
    assert may_replace(copy)
    (copy / "cache").mkdir()
    for name in (".manifest.json.abc.sdpl-tmp", ".DS_Store", "cache/anything"):  # what nobody misses
        (copy / name).write_text("")
    assert may_replace(copy)
    (copy / "precious.txt").write_text("")
    (copy / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UserError, match=r"holds link, precious.txt, which no export wrote .* move it elsewhere"):
        may_replace(copy)
    extension = tmp_path / "extension"
    extension.mkdir()
    for text in ('{"name": "x", "manifest_version": 3}', "[]", "{"):
        (extension / "manifest.json").write_text(text)
        assert not may_replace(extension)


def test_a_killed_process_s_temporary_in_a_bundle_goes_with_the_next_change(copy):
    left = copy / ".manifest.json.abc.sdpl-tmp"
    left.write_text("{")
    Bundle.open(copy).replace_targets({})
    assert not left.exists()


def test_files_can_be_read_by_others(bundle):
    assert {oct(p.stat().st_mode & 0o444) for p in bundle.iterdir()} == {oct(0o444)}
