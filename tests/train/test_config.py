import dataclasses
import pathlib
import re

import pytest
import yaml

import sdpl.train
from sdpl.data.formats import recognise
from sdpl.errors import UserError
from sdpl.train.config import Config, check_config
from sdpl.train.config_files import read_config, read_sweep
from sdpl.train.model.word_vectors import SHIPPED
from sdpl.train.sweep import runs

MINIMAL = {"data": {"train": {"annotations": "a.json"}}}


def with_value(section, key, value):
    return {**MINIMAL, section: {**MINIMAL.get(section, {}), key: value}}


def test_defaults_are_the_paper_s():
    config = check_config(MINIMAL)
    assert (config.model.backbone, config.model.image_size, config.model.map_pool) == ("RN101", 448, 2)
    assert (config.model.joint_dim, config.model.prompt_tokens, config.model.pooling) == (1024, 16, "projected")
    assert (config.train.lr, config.train.warmup_lr, config.train.epochs, config.train.batch_size) == (
        0.002, 0.0005, 100, 64,
    )  # fmt: skip
    assert (config.train.gamma_pos, config.train.gamma_neg, config.train.margin) == (1, 2, 0.05)


def test_survives_being_saved():
    config = check_config(MINIMAL)
    assert check_config(yaml.safe_load(yaml.safe_dump(dataclasses.asdict(config)))) == config


def test_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        check_config(MINIMAL).train.lr = 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_value("train", "leraning_rate", 1), r"unknown key 'train.leraning_rate'"),
        (with_value("train", "batchsize", 1), r"did you mean 'batch_size'\?"),
        (with_value("model", "imge_size", 1), r"did you mean 'image_size'\?"),
        (with_value("data", "val", {"annotation": "x"}), r"did you mean 'annotations'\?"),
        ({**MINIMAL, "modle": {}}, r"did you mean 'model'\?"),
        ({"data": {}}, r"'data.train' is missing"),
        ({}, r"'data' is missing"),
        (with_value("train", "lr", 0), r"train.lr = 0: .*greater than 0"),
        (with_value("train", "lr", "fast"), r"train.lr = 'fast': .*valid number"),
        (with_value("train", "lr", float("nan")), r"train.lr = nan: .*finite"),
        (with_value("train", "epochs", 1.5), r"train.epochs = 1.5: .*integer"),
        (with_value("train", "loss", "mse"), r"train.loss = 'mse': .*'partial-asymmetric' or 'partial-bce'"),
        (with_value("train", "margin", 1.0), r"train.margin = 1.0: .*less than 1"),
        (with_value("train", "gamma_pos", 0.5), r"train.gamma_pos = 0.5: .*0 or at least 1"),
        (with_value("data", "known_proportion", 0), r"data.known_proportion = 0: .*greater than 0"),
        (with_value("model", "image_size", 8), r"model.image_size = 8: .*32"),
        (with_value("model", "prompts", "none"), r"'category-specific', 'shared', 'dual', 'manual' or 'vectors'"),
        (with_value("model", "manual_prompt", "a photo"), r"model.manual_prompt = 'a photo': .*\{\}"),
        (with_value("train", "seed", 2**70), r"train.seed = .*less than 4294967296"),
        (with_value("model", "backbone", None), r"model.backbone = None: .*valid string"),
    ],
)
def test_wrong_keys_and_values_are_named(values, message):
    with pytest.raises(UserError, match=message) as caught:
        check_config(values, "c.yaml")
    assert str(caught.value).startswith("c.yaml: ")
    assert "\n" not in str(caught.value)


def test_every_field_is_read_by_the_code():
    """A key that nothing reads would be a lie to the user."""
    sources = [p for p in pathlib.Path(sdpl.train.__file__).parent.rglob("*.py") if p.name != "config.py"]
    code = "\n".join(p.read_text() for p in sources)
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(section.type):
            assert f".{field.name}" in code, f"{section.name}.{field.name}"


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "w.safetensors").touch()
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "model": {"weights": "w.safetensors"}}))
    config = read_config(path)
    assert config.data.train.annotations == str(tmp_path / "a.json")
    assert config.model.weights == str(tmp_path / "w.safetensors")
    path.write_text(yaml.safe_dump({**MINIMAL, "model": {"weights": "openai"}}))
    assert read_config(path).model.weights == "openai"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("[" * 3000, "is not YAML"),
        ("- 1", "is not a mapping"),
        ("", "is not a mapping"),
        ("data: 3", "data = 3"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "c.yaml")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such configuration file"):
        read_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("name", "annotations"),
    [
        ("coco", "data/coco/annotations/instances_train2014.json"),
        ("voc", "data/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"),
    ],
)
def test_the_ready_configurations_have_the_paper_s_values(name, annotations):
    """Which are the defaults (see above), but for the words; and each says that in full."""
    root = pathlib.Path(__file__).parents[2]
    path = root / "configs" / f"{name}_rn101.yaml"
    config, paper = read_config(path), check_config(MINIMAL)
    assert config.model.word_vectors in SHIPPED
    assert dataclasses.replace(config.model, word_vectors=paper.model.word_vectors) == paper.model
    assert config.train == paper.train
    assert pathlib.Path(config.data.train.annotations).resolve() == root / annotations
    assert recognise(pathlib.Path(annotations)) == name


def test_the_ready_sweep_has_methods_that_can_be_trained():
    sweep = read_sweep(pathlib.Path(__file__).parents[2] / "configs" / "coco_sweep.yaml")
    made = runs(sweep)
    assert len(made) == len(sweep.methods) * 9 == 90
    assert len({str(dataclasses.replace(run.config.data, known_proportion=1)) for run in made}) == 1
    assert len({str((run.config.model, run.config.train)) for run in made}) == len(sweep.methods)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lr=-1", "train.lr"),
        ("train.epoch=1", "unknown key 'train.epoch'; did you mean 'epochs'"),
        ("lr=1", "expected SECTION.KEY=VALUE, such as train.lr=0.01"),
        ("train.lr", "expected SECTION.KEY=VALUE"),
        ("train.lr=[1", "its value is not YAML"),
        ("data.workers.many=1", "workers has no keys of its own"),
    ],
)
def test_a_setting_is_checked_like_the_file(tmp_path, setting, message):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": {"train": {"annotations": "a.json"}, "workers": 3}}))
    with pytest.raises(UserError, match=re.escape(message)):
        read_config(path, (setting,))


def test_settings_replace_what_the_file_has(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"data": {"train": {"annotations": "a.json"}}}))
    monkeypatch.chdir(tmp_path.parent)
    settings = ("train.lr=0.01", "data.val.annotations=b.json", "model.weights=null", "data.categories=[cat, dog]")
    config = read_config(path, settings)
    assert (config.train.lr, config.model.weights, config.data.categories) == (0.01, None, ("cat", "dog"))
    assert config.data.train.annotations == str(tmp_path / "a.json")  # relative to the file
    assert config.data.val.annotations == str(tmp_path.parent / "b.json")  # relative to where the command runs


def test_values_of_tables_are_three_different_numbers(config):
    values = read_config(config(data={"values": {"present": 1, "absent": 0, "unknown": -1}})).data.values
    assert values.meaning == {1: 1, 0: -1, -1: 0}
    with pytest.raises(UserError, match="need three different numbers"):
        read_config(config(data={"values": {"present": 1, "absent": 1}}))
    with pytest.raises(UserError, match=r"unknown key 'data\.values\.abcent'; did you mean 'absent'\?"):
        read_config(config(data={"values": {"abcent": 0}}))
