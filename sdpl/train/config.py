"""The one configuration: frozen dataclasses, checked once, saved in the checkpoint, copied to the manifest."""

import re
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from sdpl.errors import UserError, listed, nearest
from sdpl.text import path_problem

Checked = TypeVar("Checked")
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0, le=10**9)]
Size = Annotated[int, Field(gt=0, le=65536)]  # of a tensor's axis, or threads: more exhausts any machine
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _focusing_power(value: float) -> float:
    if 0 < value < 1:
        raise ValueError("expected 0 or at least 1; in between the loss has an infinite gradient")
    return value


def _with_placeholder(value: str) -> str:
    if "{}" not in value:
        raise ValueError("expected a sentence with {} where the category's name goes")
    return value


def _path(value: str) -> str:
    problem = path_problem(value)
    if problem:
        raise ValueError(f"the path {problem}")
    return value


PathText = Annotated[str, AfterValidator(_path)]
ShortText = Annotated[str, Field(max_length=1000)]
FocusingPower = Annotated[float, Field(ge=0), AfterValidator(_focusing_power)]

_RULES = ConfigDict(extra="forbid", allow_inf_nan=False, strict=False)


@dataclass(frozen=True, kw_only=True, config=_RULES)
class Split:
    """One split: a label file (`sdpl.data.formats`), and its images' folder if not where the format keeps them."""

    annotations: PathText
    images: PathText | None = None
    format: Literal["auto", "coco", "voc", "csv", "jsonl", "parquet"] = "auto"


@dataclass(frozen=True, kw_only=True, config=_RULES)
class Values:
    """What the numbers in a table's columns mean. CheXpert's: {present: 1, absent: 0, unknown: -1}."""

    present: float = 1
    absent: float = -1
    unknown: float | None = None  # beside blank, which always is

    @model_validator(mode="after")
    def _differ(self) -> "Values":
        if len({self.present, self.absent, self.unknown}) < 3:
            raise ValueError("present, absent and unknown need three different numbers")
        return self

    @property
    def meaning(self) -> dict[float, int]:
        """The label of each number: 1 present, -1 absent, 0 unknown."""
        return {self.present: 1, self.absent: -1} | ({} if self.unknown is None else {self.unknown: 0})


@dataclass(frozen=True, kw_only=True, config=_RULES)
class DataConfig:
    train: Split
    val: Split | None = None  # without it, `val_fraction` of the training images is held out
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    known_proportion: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the training labels
    mask_seed: Seed = 0
    categories: tuple[str, ...] | None = None  # names and their order; by default those of the training file
    values: Values | None = None  # of tables whose numbers do not mean 1 present, -1 absent, 0 unknown
    unreadable: Literal["stop", "skip"] = "stop"  # what a damaged image does to a run; "skip" names and counts it
    workers: Annotated[int, Field(gt=0, le=1024)] = 2  # threads that decode images
    flip: bool = False  # mirror training images at random
    min_crop: Annotated[float, Field(gt=0, le=1)] = 1.0  # random resized crops of at least this share of the area
    cache: PathText | None = None  # folder in which the frozen tower's maps are kept
    cache_views: Size = 1  # augmented views of each image in the cache; an epoch takes the next one

    @model_validator(mode="after")
    def _views_differ(self) -> "DataConfig":
        if self.cache_views > 1 and (self.cache is None or not self.augments):
            raise ValueError("cache_views above 1 needs cache, and flip or min_crop: all views would be alike")
        return self

    @property
    def augments(self) -> bool:
        return self.flip or self.min_crop < 1


@dataclass(frozen=True, kw_only=True, config=_RULES)
class ModelConfig:
    backbone: ShortText = "RN101"  # an open_clip model name
    backbone_config: PathText | None = None  # an open_clip config JSON that defines `backbone`
    weights: PathText | None = "openai"  # an open_clip tag, a file, or null for random weights
    quick_gelu: bool | None = None  # the activation that a weights file was trained with, where it cannot say so itself
    image_size: Annotated[int, Field(ge=32, le=4096)] = 448
    map_pool: Size = 2  # average pooling of the trunk's map, before the head
    word_vectors: PathText = "clip"  # "clip", "glove-coco80", "glove-voc20", or a file: GloVe .txt, .npy, .npz
    joint_dim: Size = 1024
    decoupling: Literal["semantic", "convolutional", "sigmoid-mask", "none"] = "semantic"
    attention_spread: Positive | None = 0.4  # of the attention logits over the locations, at the start; decision 0050
    pooling: Literal["projected", "trunk", "fused"] = "projected"
    prompts: Literal["category-specific", "shared", "dual", "manual", "vectors"] = "category-specific"
    prompt_tokens: Annotated[int, Field(gt=0, le=1024)] = 16
    class_token_position: Literal["end", "middle", "front"] = "end"  # of the name among the learned vectors
    manual_prompt: Annotated[ShortText, AfterValidator(_with_placeholder)] = "a photo of a {}."
    probability: Literal["sigmoid", "softmax"] = "sigmoid"
    inverse_temperature: Annotated[float, Field(gt=0, le=1000)] = 10.0  # docs/decisions/0008
    learn_temperature: bool = False

    @model_validator(mode="after")
    def _fused_features_exist(self) -> "ModelConfig":
        if self.pooling == "fused" and self.decoupling != "semantic":
            raise ValueError("pooling 'fused' pools the features of semantic attention: it needs decoupling 'semantic'")
        return self


@dataclass(frozen=True, kw_only=True, config=_RULES)
class TrainConfig:
    loss: Literal["partial-asymmetric", "partial-bce"] = "partial-asymmetric"
    gamma_pos: FocusingPower = 1.0
    gamma_neg: FocusingPower = 2.0
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05
    epochs: Count = 100
    batch_size: Size = 64  # images of one step, over all processes and parts
    accumulate: Size = 1  # parts into which a process cuts its share of a batch, to save memory
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the frozen image tower; all else is float32
    lr: Positive = 0.002
    warmup_lr: Positive = 0.0005
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 0.0005
    keep: Literal["best", "last"] = "best"  # epoch in model.ckpt; "best" takes the last where val says too little
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # above 0: averaged weights are validated and exported
    fit_thresholds: bool = False  # per category, best F1 on the validation split; otherwise 0.5
    checkpoint_steps: Count | None = None  # also write last.ckpt after every so many steps
    tensorboard: bool = False
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()  # each with its own package and settings
    seed: Seed = 0
    device: ShortText = "auto"  # "auto", "cpu", "cuda", "cuda:1"


@dataclass(frozen=True, kw_only=True, config=_RULES)
class Config:
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True, config=_RULES)
class SweepConfig:
    """Many trainings: `base` with the changes of every method, at every proportion of known labels, with every seed."""

    base: PathText  # a training configuration
    test: Split  # the checkpoint that each run keeps is measured on all labels of this split
    methods: Annotated[dict[str, dict[str, dict[str, Any]]], Field(min_length=1)]  # name -> section -> key -> value
    proportions: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)  # of weights, order, mask and held-out images
    figures: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # name of a picture -> methods in it
    keep_checkpoints: bool = False

    @model_validator(mode="after")
    def _figures_show_methods(self) -> "SweepConfig":
        unknown = {name for names in self.figures.values() for name in names} - set(self.methods)
        if unknown:
            raise ValueError(f"figures name methods that are not in the sweep: {listed(sorted(unknown))}")
        odd = [name for name in self.figures if not re.fullmatch(r"\w[\w .-]{0,99}", name)]
        if odd:
            raise ValueError(f"figures are files of these names, of letters, digits, '-' and '.': {listed(odd)}")
        return self


_SECTIONS: dict[type, dict[tuple[int | str, ...], type]] = {
    Config: {
        (): Config,
        ("data",): DataConfig,
        ("data", "train"): Split,
        ("data", "val"): Split,
        ("data", "values"): Values,
        ("model",): ModelConfig,
        ("train",): TrainConfig,
    },
    SweepConfig: {(): SweepConfig, ("test",): Split},
}
_SCHEMAS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in _SECTIONS}


def check_config(values: dict[str, Any], name: str = "config") -> Config:
    """The checked configuration of plain values. Raises UserError naming the first wrong key or value."""
    return _check(Config, values, name)


def check_sweep(values: dict[str, Any], name: str) -> SweepConfig:
    """The checked sweep of plain values. Raises UserError naming the first wrong key or value."""
    return _check(SweepConfig, values, name)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one level, with dotted keys: {"train.lr": 0.002}."""
    rows: dict[str, Any] = {}
    for key, value in values.items():
        rows |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return rows


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Every key of two configurations whose value differs, as "key: old -> new"."""
    rows = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            rows += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            rows.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return rows


def _check(kind: type[Checked], values: dict[str, Any], name: str) -> Checked:
    try:
        checked: Checked = _SCHEMAS[kind].validate_python(values)
        return checked
    except ValidationError as error:
        raise UserError(f"{name}: {_explain(error, _SECTIONS[kind])}") from None


def _explain(error: ValidationError, sections: dict[tuple[int | str, ...], type]) -> str:
    unknown = [e for e in error.errors() if e["type"] == "unexpected_keyword_argument"]
    first = (unknown or error.errors())[0]  # a misspelt key also shows as a missing one; the misspelling says more
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error" and not isinstance(first["input"], str | int | float):  # of several keys together
        return f"{key}: {first['ctx']['error']}.".removeprefix(": ")
    if unknown:
        known = (field.name for field in fields(sections[first["loc"][:-1]]))
        return f"unknown key {key!r}; {nearest(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"{key!r} is missing."
    return f"{key} = {first['input']!r}: {first['msg'].lower()}."
