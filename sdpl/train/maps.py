"""Where the frozen tower's maps f [B,L,D] come from: from the tower, image by image, or from the feature cache."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
import torch
from rich.progress import Progress

import sdpl.preprocess
from sdpl.errors import UserError
from sdpl.preprocess import preprocess
from sdpl.train import augment
from sdpl.train.augment import Augmentation
from sdpl.train.cache import FeatureCache, Key, hash_all, hash_images, open_cache
from sdpl.train.config import Config
from sdpl.train.data import LabelledImages, decoded
from sdpl.train.encoders import FrozenClip

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
FILL_BATCH = 16  # images; the tower gains nothing from more on a CPU, and little on a GPU
Groups = Iterable[Sequence[int]]


class Maps(Protocol):
    """Maps of one split."""

    def batches(self, groups: Groups, epoch: int | None = None) -> Iterator[tuple[list[int], torch.Tensor]]:
        """For each group of rows: the rows, and their maps float32 [B,L,D] on the device.

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


class TowerMaps:
    """Maps computed each time they are asked for."""

    def __init__(self, tower: Tower, data: LabelledImages, config: Config):
        self.tower, self.data = tower, data
        self.image_size, self.workers = config.model.image_size, config.data.workers
        self.augmentation = augmentation(config)

    def batches(self, groups: Groups, epoch: int | None = None) -> Iterator[tuple[list[int], torch.Tensor]]:
        def load(row: int) -> np.ndarray:
            path = self.data.images[row]
            if epoch is None or self.augmentation is None:
                return preprocess(path, self.image_size)
            return self.augmentation.view(path, self.image_size, epoch)

        for rows, images in decoded(groups, load, self.workers):
            yield rows, self.tower(images)


class CachedMaps:
    """Maps read from the cache: the images' own, and the augmented views, of which each epoch takes the next."""

    def __init__(self, plain: FeatureCache | None, views: Sequence[FeatureCache], digests: list[str], device):
        """digests: the images' hashes, in the order of the split's rows. plain: None where nothing asks for it."""
        self.plain, self.views, self.digests, self.device = plain, views, digests, device

    def batches(self, groups: Groups, epoch: int | None = None) -> Iterator[tuple[list[int], torch.Tensor]]:
        cache = self.plain if epoch is None or not self.views else self.views[epoch % len(self.views)]
        for group in groups:
            rows = [int(row) for row in group]
            found = cache.maps[[cache.row[self.digests[row]] for row in rows]]  # [B,L,D] float16
            yield rows, torch.from_numpy(found).to(self.device).float()


def augmentation(config: Config) -> Augmentation | None:
    data = config.data
    return Augmentation(data.flip, data.min_crop, config.train.seed) if data.augments else None


def cached_maps(
    tower: Tower, train: LabelledImages, val: LabelledImages, shape: tuple[int, int], config: Config, progress: Progress
) -> tuple[CachedMaps, CachedMaps]:
    """The maps of both splits from the cache that `data.cache` names, which is filled where it is not whole.

    Without augmentation both splits share one cache, whatever images are held out. shape: L and D.
    """
    paths = list(dict.fromkeys((*train.images, *val.images)))
    task = progress.add_task("hashing images", total=len(paths))
    digest = hash_images(paths, config.data.workers, lambda done: progress.advance(task, done))
    progress.remove_task(task)
    views = augmentation(config)
    key = _key(tower, config)

    def open_one(images: Sequence[Path], number: int | None) -> FeatureCache:
        of_digest = {digest[path]: path for path in images}
        load = _loader(views if number is not None else None, config.model.image_size, number)
        view = "plain" if number is None else f"{views}, view {number}"
        order = sorted(of_digest)

        def fill(start: int) -> Iterator[np.ndarray]:
            task = progress.add_task("filling the cache", total=len(order), completed=start)
            groups = [range(i, min(i + FILL_BATCH, len(order))) for i in range(start, len(order), FILL_BATCH)]
            for rows, images in decoded(groups, lambda row: load(of_digest[order[row]]), config.data.workers):
                yield tower(images).cpu().numpy()  # [B,L,D]
                progress.advance(task, len(rows))
            progress.remove_task(task)

        return open_cache(Path(config.data.cache), {**key, "view": view}, order, shape, fill, progress.console.print)

    plain = open_one(val.images if views else paths, None)
    augmented = [open_one(train.images, number) for number in range(config.data.cache_views)] if views else []
    splits = ((train, None if views else plain, augmented), (val, plain, ()))
    return tuple(CachedMaps(own, more, [digest[p] for p in s.images], tower.device) for s, own, more in splits)


def _loader(views: Augmentation | None, image_size: int, number: int | None) -> Callable[[Path], np.ndarray]:
    if views is None:
        return lambda path: preprocess(path, image_size)
    return lambda path: views.view(path, image_size, number)


def _key(tower: Tower, config: Config) -> Key:
    """What maps depend on beside the images: each part as text that any change changes."""
    encoder = tower.encoder
    visual = encoder.clip.visual.state_dict()
    code = b"".join(Path(module.__file__).read_bytes() for module in (sdpl.preprocess, augment))
    weights = (name.encode() + tensor.cpu().contiguous().numpy().tobytes() for name, tensor in sorted(visual.items()))
    return {
        "weights": hash_all(weights),
        "architecture": f"{json.dumps(encoder.clip_config, sort_keys=True)}, map_pool {encoder.map_pool}",
        "image size": str(config.model.image_size),
        "preprocessing": f"{hash_all([code])}, Pillow {PIL.__version__}",
        "precision": tower.precision,
    }
