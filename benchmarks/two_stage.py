"""The two-stage runtime on a GPU with PyTorch as its first stage: answers, latencies, overlap, and a soak.

    python benchmarks/two_stage.py [--out FILE] [--seconds 480] [--quick]

Needs PyTorch and a GPU, and no engine, checkpoint or bundle: the encoder has random weights
(`torch_encoder.PatchEncoder`); 448 pixels, C=80, K=1024, float16. The other side of the comparison is the same module
with the folded head in PyTorch, in a CUDA graph with pinned copies. Ends with status 3 when the time was not enough:
call it again.
"""

import itertools
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from kernel import folded
from results import UNFINISHED, Results
from safetensors.numpy import save_file
from torch_encoder import PatchEncoder, TorchEncoder

from sdpl.kernels.launch import Kernels
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.manifest import Profile
from sdpl.runtime.bench import measure, measure_callers, summarize
from sdpl.runtime.device import Cuda
from sdpl.runtime.environment import environment
from sdpl.runtime.two_stage import TwoStage

C, BATCHES, LAUNCHES, SOAK = 80, (1, 8, 32), 200, 2000


def make(folder: Path, head: dict[str, np.ndarray], module: PatchEncoder, most: int) -> TwoStage:
    """The backend as a bundle of this head would open it."""
    save_file(head, folder / "head.safetensors")
    side = int(module.locations**0.5)
    manifest = SimpleNamespace(
        probability="sigmoid", preprocessing=SimpleNamespace(image_size=module.side), map_size=(side, side)
    )
    bundle: Any = SimpleNamespace(manifest=manifest, file=lambda name: folder / name)
    target: Any = SimpleNamespace(
        files={"head": "head.safetensors"}, profile=Profile(min=1, opt=min(8, most), max=most)
    )
    return TwoStage("torch", bundle, target, TorchEncoder(module), Kernels("float16"), Cuda())


def answers(backend: TwoStage, module: PatchEncoder, head: dict[str, np.ndarray], images: np.ndarray) -> dict:
    """Largest differences from the specification in float64, on u and g of the same module: first call, replays,
    images on the GPU at an aligned and another address, two callers at once. Scores move by at most a fourth of what
    logits do, and logits by few thousandths (each rounds to 11 bits)."""
    with torch.inference_mode():
        u, g = (x.double().cpu().numpy() for x in module(torch.from_numpy(images).cuda()))
    v = torch.from_numpy(head["v"]).half().double().numpy()
    expected = 1 / (1 + np.exp(-bilinear_attention_pool(u, v, head["q"].astype(float), g, head["t"].astype(float))[0]))
    there = torch.zeros(images.size + 1, dtype=torch.uint8, device="cuda")
    found = {}
    for name, source in (
        ("first", images),
        ("replayed", images),
        ("on_gpu", there[:-1].copy_(torch.from_numpy(images.reshape(-1))).reshape(images.shape)),
        ("on_gpu_misaligned", there[1:].copy_(torch.from_numpy(images.reshape(-1))).reshape(images.shape)),
    ):
        found[name] = float(np.abs(backend.scores(source) - expected).max())
        assert found[name] <= 0.02, f"{name}: off by {found[name]}"
    return found


def head_us(backend: TwoStage, batch: int) -> float:
    """Device time of the kernel alone in microseconds, of many launches in one graph."""
    device = backend._device
    with backend._slots.take(first=True) as slot, device.current():
        bucket = backend._bucket(slot, batch, with_attention=False)
        graph = device.capture(
            slot.stream,
            lambda: [backend._head.enqueue(batch, bucket.pointers, False, slot.stream) for _ in range(LAUNCHES)],
        )

        def call() -> None:
            device.replay(graph, slot.stream)
            device.synchronize(slot.stream)

        times = measure(call, 1)[0]
        device.destroy_graph(graph)
    return float(1000 * np.median(times) / LAUNCHES)


def pytorch_call(module: PatchEncoder, head: dict[str, np.ndarray], images: np.ndarray):
    """The same model in PyTorch: pinned copy in, one CUDA graph, pinned copy out."""
    v, q, t = (torch.from_numpy(head[name]).cuda().half() for name in "vqt")
    pinned, out = torch.from_numpy(images).pin_memory(), torch.empty(len(images), C).pin_memory()
    image, stream = torch.empty(images.shape, dtype=torch.uint8, device="cuda"), torch.cuda.Stream()

    def run() -> None:
        image.copy_(pinned, non_blocking=True)
        u, g = module(image)
        out.copy_(folded(u, v, q, g, t).float().sigmoid(), non_blocking=True)

    with torch.inference_mode(), torch.cuda.stream(stream):
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()

    def call() -> None:
        pinned.numpy()[:] = images
        graph.replay()
        torch.cuda.synchronize()

    return call


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
@click.option("--seconds", type=float, default=480, show_default=True)
@click.option("--quick", is_flag=True, help="The answers only.")
def main(out: Path | None, seconds: float, quick: bool) -> None:
    if not torch.cuda.is_available():
        raise click.ClickException("this benchmark needs a GPU; tests/runtime shows what can be shown without one.")
    about = {**environment(), "torch": torch.__version__, "gpu": torch.cuda.get_device_name()}
    results = Results(out, seconds, **about)
    torch.manual_seed(0)
    module = PatchEncoder().cuda().half()
    rng = np.random.default_rng(0)
    shapes = {"v": (C, module.joint), "q": (module.joint,), "t": (C, module.embed)}
    head = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    head["q"] *= 3 / module.joint**0.5
    head["t"] /= module.embed**0.5
    images = rng.integers(0, 256, (max(BATCHES), module.side, module.side, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        backend = make(Path(folder), head, module, max(BATCHES))
        results.add("answers", {batch: answers(backend, module, head, images[:batch]) for batch in (1, 3, 8, 32)})
        works = {} if quick else dict(measurements(backend, module, head, images))
        for name, work in works.items():
            if results.enough():
                sys.exit(UNFINISHED)
            if not results.has(name):
                results.add(name, work())
        backend.close()


def measurements(backend: TwoStage, module: PatchEncoder, head: dict[str, np.ndarray], images: np.ndarray):
    """Names and calls of what is measured; each takes a few seconds."""
    for batch in BATCHES:
        some = images[:batch]
        yield (
            f"device, batch {batch}",
            lambda s=some: vars(summarize("device", len(s), *measure(backend.on_device(s), 3))),
        )
        yield f"head, batch {batch}", lambda s=some: {"us": head_us(backend, len(s)), "launches": LAUNCHES}
        for callers in (1, 2, 4):
            call = lambda s=some: backend.scores(s)  # noqa: E731
            yield (
                f"model, batch {batch}, callers {callers}",
                lambda c=call, n=callers, s=some: vars(
                    summarize("model", len(s), *measure_callers(c, n, 3), callers=n)
                ),
            )
        yield (
            f"PyTorch in a graph, batch {batch}",
            lambda s=some: vars(summarize("model", len(s), *measure(pytorch_call(module, head, s), 3), side="PyTorch")),
        )
    yield "soak", lambda: soak(backend, images)


def soak(backend: TwoStage, images: np.ndarray) -> dict[str, int]:
    """Free memory of the GPU before and after many batches of all sizes."""
    device = Cuda()
    for batch in BATCHES:
        backend.scores(images[:batch])
    with device.current():
        before = device.free_bytes()
        for _, batch in zip(range(SOAK), itertools.cycle((1, 3, 8, 20, 32)), strict=False):
            backend.scores(images[:batch])
        return {"batches": SOAK, "free_bytes_before": before, "free_bytes_after": device.free_bytes()}


if __name__ == "__main__":
    main()
