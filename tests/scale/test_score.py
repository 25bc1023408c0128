"""Every kind of input to Parquet, and what a user can get wrong."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdpl.runtime import Recognizer
from sdpl.scale import OneProcess


@pytest.fixture(scope="module")
def expected(bundle, photos):
    """Scores [24,C] as `Recognizer` gives them."""
    with Recognizer.open(bundle) as recognizer:
        return np.stack([recognizer.scores(recognizer.preprocess(photo)[None])[0] for photo in photos])


def scores_of(found, photos):
    by_name = {key.split("/")[-1].removesuffix(".jpg"): row["scores"] for (_, key), row in found.items()}
    return np.array([by_name[photo.stem] for photo in photos])


def test_a_folder(sdpl, bundle, scenes, photos, expected, rows, tmp_path):
    result = sdpl("score", bundle, scenes / "train", "--out", tmp_path / "out", "--shard-size", 10)
    assert result.exit_code == 0, result.output
    assert "3 of 3 shards, 24 images, 0 with an error" in result.stdout
    np.testing.assert_allclose(scores_of(rows(tmp_path / "out"), photos), expected, atol=1e-6)
    sizes = [pq.read_metadata(tmp_path / "out" / f"shard-{i:06d}.parquet").num_rows for i in range(3)]
    assert sizes == [10, 10, 4]


def test_every_kind_of_input_gives_the_same_scores(sdpl, bundle, photos, tars, expected, rows, tmp_path, write_tar):
    (tmp_path / "list.txt").write_text("".join(f"{photo}\n" for photo in photos))
    gz = write_tar(tmp_path / "all.tar.gz", [(photo.name, photo.read_bytes()) for photo in photos])
    names, data = [photo.stem for photo in photos], [photo.read_bytes() for photo in photos]
    pq.write_table(pa.table({"jpg": data, "key": names}), tmp_path / "bytes.parquet")
    pq.write_table(
        pa.table({"image": [{"bytes": d, "path": n} for d, n in zip(data, names, strict=True)]}),
        tmp_path / "hf.parquet",
    )
    pq.write_table(pa.table({"path": [str(photo) for photo in photos]}), tmp_path / "paths.parquet")
    images = pa.array(data, pa.binary())
    pq.write_table(pa.table({"jpg": images.dictionary_encode(), "key": names}), tmp_path / "dictionary.parquet")
    pq.write_table(pa.table({"jpg": images.cast(pa.binary_view()), "key": names}), tmp_path / "view.parquet")
    kinds = {
        "dictionary": [tmp_path / "dictionary.parquet"],
        "view": [tmp_path / "view.parquet"],
        "list": [f"@{tmp_path / 'list.txt'}"],
        "glob": [photos[0].parent / "*.jpg"],
        "tars": tars,
        "gz": [gz],
        "bytes": [tmp_path / "bytes.parquet"],
        "hf": [tmp_path / "hf.parquet"],
        "paths": [tmp_path / "paths.parquet"],
        "deep": [photos[0].parent.parent, "--recursive"],
    }
    for kind, words in kinds.items():
        result = sdpl("score", bundle, *words, "--out", tmp_path / kind)
        assert result.exit_code == 0, result.output
        found = rows(tmp_path / kind)
        train = {k: row for k, row in found.items() if "/test/" not in k[0]}
        assert len(train) == 24, kind
        np.testing.assert_allclose(scores_of(train, photos), expected, atol=1e-6, err_msg=kind)


def test_a_file_that_is_named_in_two_ways_is_one_input(sdpl, bundle, photos, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(photos[0].parent)
    names = [photos[0].name, f"./{photos[0].name}", f".//./{photos[0].name}"]
    result = sdpl("score", bundle, *names, "--out", tmp_path / "out")
    assert "inputs named more than once, scored once: 2" in result.stdout
    assert list(rows(tmp_path / "out")) == [(photos[0].name, photos[0].name)]


def test_standard_input(bundle, photos, rows, tmp_path):
    from click.testing import CliRunner

    from sdpl.cli import main

    words = ["score", str(bundle), "-", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, words, input="\n".join(map(str, photos[:3])))
    assert result.exit_code == 0, result.output
    assert [key for _, key in rows(tmp_path / "out")] == [str(photo) for photo in photos[:3]]


def test_what_is_kept(sdpl, bundle, photos, expected, rows, tmp_path):
    categories = np.array(Recognizer.open(bundle).categories)
    order = np.argsort(-expected[0], kind="stable")
    for keep, picked in (("top:3", order[:3]), ("threshold:0.5", order[expected[0][order] >= 0.5])):
        sdpl("score", bundle, photos[0], "--out", tmp_path / keep, "--keep", keep, "--dtype", "float16")
        (row,) = rows(tmp_path / keep).values()
        assert row["labels"] == categories[picked].tolist()
        assert row["scores"] == pytest.approx(expected[0][picked].astype(np.float16).tolist(), abs=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_are_a_column(sdpl, fails, bundle, photos, tmp_path, dtype):
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    words = ("score", bundle, photos[0], tmp_path / "bad.jpg", photos[1], "--out", tmp_path / "out", "--dtype", dtype)
    assert sdpl(*words, "--embeddings").exit_code == 0
    table = pq.read_table(tmp_path / "out" / "shard-000000.parquet")
    assert table.schema.field("embedding").type == pa.list_(getattr(pa, dtype)(), 16)
    first, bad, second = table["embedding"].to_pylist()
    assert bad is None
    with Recognizer.open(bundle) as recognizer:
        np.testing.assert_allclose([first, second], recognizer.embed(photos[:2]), atol=1e-6 if "32" in dtype else 1e-3)
    assert "--embeddings was True, is now None" in fails(*words)


def test_the_footer_says_what_scored(sdpl, bundle, photos, tmp_path):
    sdpl("score", bundle, photos[0], "--out", tmp_path / "out")
    metadata = json.loads(pq.read_metadata(tmp_path / "out" / "shard-000000.parquet").metadata[b"sdpl"])
    assert metadata["target"] == "cpu:fp32"
    assert metadata["preprocessing"] == 1
    assert len(metadata["categories"]) == len(metadata["thresholds"]) == 10
    assert "onnxruntime" in metadata["versions"]["library"]
    assert (
        json.loads((tmp_path / "out" / "job.json").read_text())["model"]["bundle_sha256"] == metadata["bundle_sha256"]
    )
    column = pq.ParquetFile(tmp_path / "out" / "shard-000000.parquet").metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_bad_images_are_rows_with_an_error(sdpl, bundle, photos, rows, tmp_path, write_tar):
    tar = write_tar(tmp_path / "a.tar", [("good.jpg", photos[0].read_bytes()), ("bad.jpg", b"x"), ("empty.jpg", b"")])
    (tmp_path / "list.txt").write_text(str(tmp_path / "gone.jpg"))
    words = [tar, f"@{tmp_path / 'list.txt'}", photos[1], "--out", tmp_path / "out"]
    result = sdpl("score", bundle, *words, "--json")
    assert result.exit_code == 0
    by_key = {key.split("/")[-1]: row for (_, key), row in rows(tmp_path / "out").items()}
    assert "no such image" in by_key["gone.jpg"]["error"]
    assert "is not an image" in by_key["bad"]["error"]
    assert by_key["empty"]["scores"] is None
    assert by_key["good"]["error"] is None
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["all_images"], summary["all_bad"]) == (5, 3)
    assert sum(summary["above"].values()) > 0


def test_a_repeated_key_is_kept_as_an_error(sdpl, bundle, photos, tmp_path, write_tar):
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", photos[0].read_bytes()), ("a.jpg", photos[1].read_bytes())])
    result = sdpl("score", bundle, tar, tar, "--out", tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "shard-000000.parquet").to_pylist()
    assert [row["error"] is None for row in table] == [True, False]
    assert "the key 'a' came before" in table[1]["error"]
    assert "of these, 1 have a key that came before" in result.stdout
    assert "inputs named more than once, scored once: 1" in result.stdout


def test_broken_shards_are_named_and_the_others_done(sdpl, bundle, photos, tars, tmp_path):
    data = tars[0].read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: data.index(b"000001.jpg") + 600])
    (tmp_path / "header.tar").write_bytes(data[: data.rindex(b"000003.txt") + 100])  # inside a header
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"x" * 100)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "wrong.parquet")
    pq.write_table(pa.table({"image": [1]}), tmp_path / "number.parquet")
    names = ["cut.tar", "header.tar", "text.tar", "bad.parquet", "wrong.parquet", "number.parquet", "gone.tar"]
    (tmp_path / "list.txt").write_text("\n".join(str(tmp_path / name) for name in names))
    words = [bundle, f"@{tmp_path / 'list.txt'}", tars[1], "--out", tmp_path / "out"]
    result = sdpl("score", *words, "--tries", 1)
    assert result.exit_code == 2
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    wanted = [
        "is cut off or damaged behind 1 images; fetch it again",
        "is cut off or damaged behind 4 images",
        "is no tar file",
        "is no Parquet file",
        "has no column for an image",
        "column 'image' holds int64",
        "there is no such file",
    ]
    assert len(failed) == len(names)
    for line, name, text in zip(failed, names, wanted, strict=True):
        assert name in line
        assert text in line
    assert "7 of 8 shards failed; the same command tries them again" in result.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {name for name in written if "shard" in name} == {"shard-000007.parquet"}
    (tmp_path / "cut.tar").write_bytes(data)  # repaired: another size, but it was not finished
    result = sdpl("score", *words, "--tries", 1)
    assert "6 of 8 shards failed" in result.stderr
    assert (tmp_path / "out" / "shard-000000.parquet").is_file()


def test_a_job_in_which_no_image_could_be_read_has_failed(sdpl, bundle, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no image")
    for _ in range(2):  # the same again, when it is finished already
        result = sdpl("score", bundle, tmp_path / "a.jpg", tmp_path / "b.jpg", "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "2 images, 2 with an error (why: the column `error`)" in result.stdout
        assert "out could be read: its column `error` says why" in result.stderr


def test_a_changed_job_is_refused_with_its_differences(sdpl, fails, bundle, tars, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert sdpl("score", bundle, *tars[:2], *out).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    message = fails("score", bundle, *tars[:2], *out, "--keep", "top:1", "--batch", 3)
    assert "holds another job: batch size was 16, is now 3; --keep was all, is now top:1" in message
    assert "1 inputs are new (" in fails("score", bundle, *tars[:3], *out)
    assert "1 inputs are gone (" in fails("score", bundle, tars[0], *out)
    assert "another order" in fails("score", bundle, tars[1], tars[0], *out)
    other = shutil.copytree(bundle, tmp_path / "other.sdpl")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["thresholds"][0] = 0.123
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "bundle sha256 was" in fails("score", other, *tars[:2], *out)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_named_input_that_is_not_there_begins_no_job(sdpl, fails, bundle, photos, tars, rows, tmp_path):
    out = tmp_path / "new" / "out"
    for name in ("photo.jpgg", "gone.tar", "gone.parquet"):
        message = fails("score", bundle, photos[0], tmp_path / name, "--out", out)
        assert f"{tmp_path / name}: no such file or folder; nothing was begun" in message
    (tmp_path / "list.txt").write_text("gone/a.jpg\ngone/b.jpg\n")
    assert "none of the 2 inputs is there, such as gone/a.jpg: paths" in fails(
        "score", bundle, f"@{tmp_path / 'list.txt'}", "--out", out
    )
    assert not out.parent.exists()
    assert sdpl("score", bundle, photos[0], "--out", out).exit_code == 0
    assert len(rows(out)) == 1


def test_what_disappears_later_does_not_end_the_job(sdpl, bundle, photos, rows, tmp_path, monkeypatch):
    first, second = (shutil.copy(photo, tmp_path) for photo in photos[:2])

    def after_the_plan(options, journal):
        (tmp_path / photos[0].name).unlink()
        return OneProcess(options, journal)

    monkeypatch.setattr("sdpl.scale.OneProcess", after_the_plan)
    words = ["score", bundle, first, second, "--out", tmp_path / "out"]
    assert sdpl(*words).exit_code == 0
    errors = {key: row["error"] for (_, key), row in rows(tmp_path / "out").items()}
    assert errors == {first: f"{first}: no such image.", second: None}
    monkeypatch.undo()
    assert "finished by earlier runs: 1 shards" in sdpl(*words).stdout


def test_its_own_files_are_no_inputs(sdpl, fails, bundle, photos, tars, rows, tmp_path, monkeypatch):
    import fsspec

    shutil.copytree(photos[0].parent, tmp_path / "data" / "photos")
    for folder in ("data", "data/out", "data/photos"):
        words = ["score", bundle, tmp_path / "data", "--recursive", "--out", tmp_path / folder]
        assert sdpl(*words).exit_code == 0
        assert "finished by earlier runs: 1 shards" in sdpl(*words).stdout, folder
        assert len(rows(tmp_path / folder)) == 24
        for path in (tmp_path / folder).glob("*.parquet"):
            path.unlink()
        (tmp_path / folder / "job.json").unlink()
    monkeypatch.chdir(tmp_path / "data" / "photos")
    for _ in range(2):
        assert sdpl("score", bundle, "*", "--out", ".").exit_code == 0
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/own/a.jpg", photos[0].read_bytes())
    for _ in range(2):
        result = sdpl("score", bundle, "memory://own", "--recursive", "--out", "memory://own/out/")
        assert result.exit_code == 0, result.output
    assert "finished by earlier runs: 1 shards" in result.stdout


def test_files_of_others_in_its_folder_are_kept(fails, bundle, photos, tmp_path):
    shutil.copy(photos[0], tmp_path)
    for name in ("inputs.parquet", "shard-000000.parquet"):
        pq.write_table(pa.table({"image": [photos[0].read_bytes()]}), tmp_path / name)
        before = (tmp_path / name).read_bytes()
        assert f"holds {name} but no job.json" in fails("score", bundle, tmp_path, "--out", tmp_path)
        assert (tmp_path / name).read_bytes() == before
        (tmp_path / name).unlink()


def test_of_a_job_that_never_began_nothing_stays(fails, bundle, photos, tmp_path):
    assert "no such bundle" in fails("score", tmp_path / "gone.sdpl", photos[0], "--out", tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "no such bundle" in fails("score", tmp_path / "gone.sdpl", photos[0], "--out", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_what_a_user_gets_wrong(fails, sdpl, bundle, photos, tars, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert "no such bundle" in fails("score", tmp_path / "gone.sdpl", photos[0], *out)
    (tmp_path / "empty").mkdir()
    assert "no images in this folder" in fails("score", bundle, tmp_path / "empty", *out)
    assert "the list cannot be read" in fails("score", bundle, f"@{tmp_path / 'gone.txt'}", *out)
    (tmp_path / "blank.txt").write_text("\n\n")
    assert "no inputs: the lists or folders hold none" in fails("score", bundle, f"@{tmp_path / 'blank.txt'}", *out)
    assert "no file fits this pattern" in fails("score", bundle, tmp_path / "*.jpg", *out)
    for keep in ("top:0", "top:x", "threshold:2", "some"):
        assert "expected all, top:K, threshold" in fails("score", bundle, photos[0], *out, "--keep", keep)
    for price in ("nan", "inf"):
        assert "is not a finite number" in fails("score", bundle, photos[0], *out, "--price-per-hour", price)
    assert "is not in the range" in fails("score", bundle, photos[0], *out, "--shard-size", 10**20)
    assert "--workers is for --ray" in fails("score", bundle, photos[0], *out, "--workers", 2)
    assert "Protocol not known: nope" in fails("score", bundle, "nope://a/b.tar", *out)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails("score", bundle, photos[0], "--out", tmp_path / "file")
    (tmp_path / "strange").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "strange" / "x.parquet")
    assert "holds x.parquet but no job.json" in fails("score", bundle, photos[0], "--out", tmp_path / "strange")
    sdpl("score", bundle, tars[0], *out)
    (tmp_path / "out" / "shard-000000.parquet").write_bytes(b"")
    assert "was not written by this job, or is damaged" in fails("score", bundle, tars[0], *out)


def test_hidden_paths_in_a_tar_are_names_and_nothing_else(sdpl, bundle, photos, rows, tmp_path, write_tar):
    members = [("../../escape.jpg", photos[0].read_bytes()), ("/root.jpg", photos[1].read_bytes())]
    tar = write_tar(tmp_path / "a.tar", members)
    assert sdpl("score", bundle, tar, "--out", tmp_path / "out").exit_code == 0
    assert {key for _, key in rows(tmp_path / "out")} == {"../../escape", "/root"}
    assert not list(tmp_path.parent.glob("**/escape*"))


def test_memory_files_of_fsspec_are_inputs_and_outputs(sdpl, bundle, photos, tars, rows, tmp_path):
    """fsspec's own in-memory file system: the same code as for s3://, in this process."""
    import fsspec

    fs = fsspec.filesystem("memory")
    for photo in photos[:4]:
        fs.pipe_file(f"/in/photos/{photo.name}", photo.read_bytes())
    fs.pipe_file("/in/shards/0.tar", tars[1].read_bytes())
    words = ["memory://in/photos/", "memory://in/shards/*.tar", "memory://in/photos/000000.jpg"]
    result = sdpl("score", bundle, *words, "--out", "memory://out/a")
    assert result.exit_code == 0, result.output
    assert "inputs named more than once, scored once: 1" in result.stdout
    tables = [pq.read_table(io.BytesIO(fs.cat_file(f"/out/a/shard-00000{i}.parquet"))) for i in range(2)]
    assert [table.num_rows for table in tables] == [4, 4]
    assert tables[0]["key"][0].as_py() == "memory:///in/photos/000000.jpg"
    assert all(error is None for table in tables for error in table["error"].to_pylist())
    again = sdpl("score", bundle, *words, "--out", "memory://out/a")
    assert "finished by earlier runs: 2 shards" in again.stdout
