"""Where the frozen tower's feature maps f [B,L,D] come from: the tower, image by image, or the feature cache."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
import torch

from sdpl.data import augment
from sdpl.data.augment import Augmentation
from sdpl.data.images import LabelledImages
from sdpl.data.reading import Unreadable, read_groups
from sdpl.errors import UserError
from sdpl.preprocess import VERSION, preprocess
from sdpl.progress import Report, Steps, silent
from sdpl.train.config import Config
from sdpl.train.features.cache import FeatureCache, Key, hash_all, hash_images, open_cache, within_float16
from sdpl.train.model import PartialLabelModel
from sdpl.train.model.clip import FrozenClip

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
FILL_BATCH = 16  # images; the tower gains nothing from more on a CPU, and little on a GPU
Groups = Iterable[Collection[int]]


class FeatureMaps(Protocol):
    """Feature maps of one split."""

    def batches(self, groups: Groups, epoch: int | None = None) -> Iterator[tuple[list[int], torch.Tensor]]:
        """For each group of rows: those that could be read, and their maps float32 [B,L,D] on the device.

        epoch: take this epoch's augmented views; None takes the images as they are.
        """


def require_precision(precision: str, device: torch.device) -> None:
    """Raise UserError when the device has no fast arithmetic of this precision."""
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"train.precision = 'fp16' needs a GPU, this run is on {device.type}: take 'bf16' or 'fp32'.")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("train.precision = 'bf16': this GPU has no bfloat16; take 'fp16' or 'fp32'.")


class Tower:
    """The frozen image tower in the configured precision: uint8 [B,S,S,3] -> f float32 [B,L,D]."""

    def __init__(self, encoder: FrozenClip, device: torch.device, precision: str):
        self.encoder, self.device, self.precision = encoder, device, precision

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> torch.Tensor:
        dtype = PRECISIONS.get(self.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.encoder.locations(torch.from_numpy(images).to(self.device)).float()  # [B,L,D]


class TowerFeatures:
    """Maps computed each time they are asked for."""

    def __init__(self, tower: Tower, data: LabelledImages, config: Config, unreadable: Unreadable):
        self.tower, self.data, self.config, self.unreadable = tower, data, config, unreadable

    def batches(self, groups: Groups, epoch: int | None = None) -> Iterator[tuple[list[int], torch.Tensor]]:
        load = image_loader(self.config, epoch)
        for rows, images in read_groups(groups, self.data.images, load, self.config.data.workers, self.unreadable):
            yield rows, self.tower(images) if rows else torch.empty(0)


class CachedFeatures:
    """Maps read from caches: the images' own, or augmented views, of which each epoch takes the next."""

    def __init__(
        self,
        caches: Sequence[FeatureCache],
        images: Sequence[Path],
        digests: dict[Path, str],
        device: torch.device,
        unreadable: Unreadable,
    ):
        """images: of the split. digests: their hashes."""
        self.caches, self.images, self.digests = caches, images, digests
        self.device, self.unreadable = device, unreadable

    def batches(self, groups: Groups, epoch: int | None = None) -> Iterator[tuple[list[int], torch.Tensor]]:
        cache = self.caches[(epoch or 0) % len(self.caches)]
        for group in groups:
            rows = [int(row) for row in group]
            found = cache.read([cache.row[self.digests[self.images[row]]] for row in rows])  # [B,L,D] float16
            read = ~np.isnan(found[:, 0, 0])  # [B]
            for i in np.flatnonzero(~read):
                path = self.images[rows[i]]
                self.unreadable(path, UserError(f"{path}: could not be read when the cache was filled."))
            rows = [row for row, ok in zip(rows, read, strict=True) if ok]
            yield rows, torch.from_numpy(found[read]).to(self.device).float()


class FeatureSource:
    """Gives the splits of a run their maps: from the tower, or from the cache that `data.cache` names."""

    def __init__(
        self,
        model: PartialLabelModel,
        config: Config,
        device: torch.device,
        report: Report = silent,
        unreadable: Unreadable | None = None,
    ):
        """unreadable: what becomes of images that cannot be read; without it, their UserError is raised."""
        self.config, self.report, self.shape = config, report, model.map_shape
        self.unreadable = unreadable or Unreadable()
        self.tower = Tower(model.encoder, device, config.train.precision)
        self.cache = None if config.data.cache is None else Path(config.data.cache)
        self.key = None if self.cache is None else _key(self.tower, config)

    def training(self, train: LabelledImages, val: LabelledImages) -> tuple[FeatureMaps, FeatureMaps]:
        """Of the training split, in augmented views if configured, and of the validation split as it is.

        Without augmentation both share one cache, whatever images are held out.
        """
        if self.cache is None or augmentation(self.config) is not None:
            return self._augmented(train), self.plain(val)
        digests = self._hash((*train.images, *val.images))
        caches = [self._open(digests, None)]
        return self._of(train, caches, digests), self._of(val, caches, digests)

    def plain(self, data: LabelledImages) -> FeatureMaps:
        """Of a split that is only measured on."""
        if self.cache is None:
            return TowerFeatures(self.tower, data, self.config, self.unreadable)
        digests = self._hash(data.images)
        return self._of(data, [self._open(digests, None)], digests)

    def _augmented(self, data: LabelledImages) -> FeatureMaps:
        if self.cache is None:
            return TowerFeatures(self.tower, data, self.config, self.unreadable)
        digests = self._hash(data.images)
        caches = [self._open(digests, number) for number in range(self.config.data.cache_views)]
        return self._of(data, caches, digests)

    def _of(self, data: LabelledImages, caches: Sequence[FeatureCache], digests: dict[Path, str]) -> CachedFeatures:
        return CachedFeatures(caches, data.images, digests, self.tower.device, self.unreadable)

    def _hash(self, images: Iterable[Path]) -> dict[Path, str]:
        paths = list(dict.fromkeys(images))
        return hash_images(paths, self.config.data.workers, Steps(self.report, "hashing images", len(paths)))

    def _open(self, digests: dict[Path, str], number: int | None) -> FeatureCache:
        """The cache of these images as they are (number None), or of one augmented view of them."""
        path_of = {digest: path for path, digest in digests.items()}
        paths = [path_of[digest] for digest in sorted(path_of)]
        assert self.cache is not None
        assert self.key is not None
        view = "plain" if number is None else f"{augmentation(self.config)}, view {number}"
        return open_cache(
            self.cache,
            {**self.key, "view": view},
            path_of,
            self.shape,
            lambda start: self._fill(paths, start, number),
            self.report,
        )

    def _fill(self, paths: list[Path], start: int, number: int | None) -> Iterator[np.ndarray]:
        """Maps float32 [B,L,D] of the images from `start` on; NaN where an image could not be read."""
        steps = Steps(self.report, "filling the cache", len(paths), start)
        groups = [range(i, min(i + FILL_BATCH, len(paths))) for i in range(start, len(paths), FILL_BATCH)]
        load, workers = image_loader(self.config, number), self.config.data.workers
        for group, (rows, images) in zip(
            groups, read_groups(groups, paths, load, workers, self.unreadable), strict=True
        ):
            block = np.full((len(group), *self.shape), np.nan, np.float32)  # [B,L,D]
            if rows:
                block[np.array(rows) - group.start] = within_float16(self.tower(images).cpu().numpy())
            yield block
            steps.advance(len(group))


def image_loader(config: Config, number: int | None) -> Callable[[Path], np.ndarray]:
    """What loads an image, uint8 [S,S,3]: as it is (number None), or this augmented view of it."""
    views = augmentation(config)
    if number is None or views is None:
        return partial(preprocess, image_size=config.model.image_size)
    return partial(views.view, image_size=config.model.image_size, number=number)


def augmentation(config: Config) -> Augmentation | None:
    data = config.data
    return Augmentation(data.flip, data.min_crop, config.train.seed) if data.augments else None


def _key(tower: Tower, config: Config) -> Key:
    """What maps depend on beside the images: each part as text that any change changes."""
    encoder = tower.encoder
    visual = encoder.clip.visual.state_dict()
    weights = (name.encode() + tensor.cpu().contiguous().numpy().tobytes() for name, tensor in sorted(visual.items()))
    return {
        "weights": hash_all(weights),
        "architecture": f"{json.dumps(encoder.clip_config, sort_keys=True)}, map_pool {encoder.map_pool}",
        "image size": str(config.model.image_size),
        "preprocessing": f"version {VERSION}, views {augment.VERSION}, Pillow {PIL.__version__}",
        "precision": tower.precision,
    }
