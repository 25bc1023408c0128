"""What the server and its models are, in the words of the Open Inference Protocol."""

from typing import Any

from sdpl import __version__
from sdpl.preprocess import FORMATS
from sdpl.server.lease import ModelInfo

EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "model_repository", "model_repository(unload)",
    "schedule_policy", "statistics",
)  # fmt: skip
ABOUT = (
    "categories",
    "thresholds",
    "target",
    "backend",
    "checkpoint_sha256",
    "created",
    "proof",
)  # of the engine's words


def server_metadata(with_repository: bool) -> dict[str, Any]:
    extensions = [name for name in EXTENSIONS if with_repository or "(unload)" not in name]
    return {"name": "sdpl", "version": __version__, "extensions": extensions}


def metadata(info: ModelInfo) -> dict[str, Any]:
    """The model's metadata. `jpeg`, which may be sent in place of `image`, is told of under "sdpl": clients such as
    perf_analyzer send every input that is listed."""
    g = info.geometry
    count = len(info.categories)
    return {
        "name": info.name,
        "versions": [info.version],
        "platform": f"sdpl_{info.description['target']}",
        "inputs": [
            {"name": "image", "datatype": "UINT8", "shape": [-1, g.image_size, g.image_size, 3]},
        ],
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [-1, count]},
            {"name": "attention", "datatype": "FP32", "shape": [-1, count, *g.map_size]},
            {"name": "labels", "datatype": "BYTES", "shape": [-1, -1]},
        ],
        "sdpl": {
            "instead_of_image": {"name": "jpeg", "datatype": "BYTES", "shape": [-1, 1], "formats": FORMATS},
            **{key: info.description[key] for key in ABOUT},
        },
    }


def config(info: ModelInfo) -> dict[str, Any]:
    """The model's configuration as Triton's clients expect it."""
    g, count = info.geometry, len(info.categories)
    sizes = info.description["batch_sizes"]
    return {
        "name": info.name,
        "platform": f"sdpl_{info.description['target']}",
        "backend": "sdpl",
        "max_batch_size": max(sizes),
        "input": [
            {"name": "image", "data_type": "TYPE_UINT8", "dims": [g.image_size, g.image_size, 3]},
        ],
        "output": [
            {"name": "scores", "data_type": "TYPE_FP32", "dims": [count]},
            {"name": "attention", "data_type": "TYPE_FP32", "dims": [count, *g.map_size]},
            {"name": "labels", "data_type": "TYPE_STRING", "dims": [-1]},
        ],
        "dynamic_batching": {"preferred_batch_size": list(sizes)},
    }
