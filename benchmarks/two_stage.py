"""The two-stage runtime on a GPU with PyTorch as its first stage: answers, latencies, overlap, and a soak.

    python benchmarks/two_stage.py [--out FILE] [--seconds 480] [--quick]

Needs PyTorch and a GPU, and no engine, checkpoint or bundle: the encoder has random weights
(`torch_encoder.PatchEncoder`); 448 pixels, C=80, K=1024, float16. The other side of the comparison is the same module
with the folded head in PyTorch, in a CUDA graph with pinned copies. Ends with status 3 when the time was not enough:
call it again.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from kernel import folded
from results import Results
from torch_encoder import PatchEncoder, TorchEncoder

from sdpl.kernels.launch import Kernels
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.manifest import Profile
from sdpl.runtime.bench import measure, measure_callers, summarize
from sdpl.runtime.device import Cuda
from sdpl.runtime.environment import environment
from sdpl.runtime.two_stage import Encoder, TwoStage

C, BATCHES, LAUNCHES, SOAK = 80, (1, 8, 32), 200, 2000
MEASURED_S = 3.0  # of each call


def make(head: dict[str, np.ndarray], module: PatchEncoder, encoder: Encoder, most: int) -> TwoStage:
    """The backend as a bundle of this head would open it."""
    side = int(module.locations**0.5)
    manifest = SimpleNamespace(
        probability="sigmoid",
        preprocessing=SimpleNamespace(image_size=module.side),
        map_size=(side, side),
        categories=range(len(head["v"])),
        embedding_size=module.embed,
    )
    bundle: Any = SimpleNamespace(manifest=manifest, head=lambda target: head)
    target: Any = SimpleNamespace(profile=Profile(min=1, opt=min(8, most), max=most))
    return TwoStage("torch", bundle, target, encoder, Kernels("float16"), Cuda())


def specified(module: PatchEncoder, head: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Scores [B,C] by the specification in float64, from the module's own u and g in float16."""
    there = next(module.parameters()).device
    with torch.inference_mode():
        u, g = (x.half().double().cpu().numpy() for x in module(torch.from_numpy(images).to(there)))
    v = torch.from_numpy(head["v"]).half().double().numpy()
    logits = bilinear_attention_pool(u, v, head["q"].astype(float), g, head["t"].astype(float))[0]
    return 1 / (1 + np.exp(-logits))


def answers(backend: TwoStage, expected: np.ndarray, sources: dict[str, Any]) -> dict[str, Any]:
    """Largest differences from the scores that are expected, for the same images from each source, in turn, then for
    all of them at once; "wrong" names those that are too large. Scores move by at most a fourth of what logits do, and
    logits by few thousandths (u and g round to 11 bits)."""
    with ThreadPoolExecutor(len(sources)) as pool:
        found = {name: backend.scores(source) for name, source in sources.items()}
        together = pool.map(backend.scores, sources.values())
        found |= {f"{name}, all at once": scores for name, scores in zip(sources, together, strict=True)}
    off = {name: float(np.abs(scores - expected).max()) for name, scores in found.items()}
    wrong = [name for name, difference in off.items() if not difference <= 0.02]
    return off | ({"wrong": wrong} if wrong else {})


def on_host_and_gpu(images: np.ndarray) -> dict[str, Any]:
    """The same images in memory of the host, for the first and a replayed run, and on the GPU at an address that an
    engine takes and at one that it does not."""
    flat = torch.from_numpy(images.reshape(-1))
    there = [torch.empty(images.size + 1, dtype=torch.uint8, device="cuda") for _ in range(2)]
    aligned, odd = there[0][:-1].copy_(flat), there[1][1:].copy_(flat)
    on_gpu = {"on_gpu": aligned.reshape(images.shape), "on_gpu_misaligned": odd.reshape(images.shape)}
    return {"first": images, "replayed": images, **on_gpu}


def head_us(backend: TwoStage, batch: int) -> float:
    """Device time of the kernel alone in microseconds, of many launches in one graph."""
    device = backend._device
    with backend._slots.take(first=True) as slot, device.current():
        bucket = backend._bucket(slot, batch, None)
        backend._head.enqueue(batch, bucket.pointers, None, slot.stream)  # loads the kernel: not while capturing
        device.synchronize(slot.stream)
        graph = device.capture(
            slot.stream,
            lambda: [backend._head.enqueue(batch, bucket.pointers, None, slot.stream) for _ in range(LAUNCHES)],
        )

        def call() -> None:
            device.replay(graph, slot.stream)
            device.synchronize(slot.stream)

        times = measure(call, MEASURED_S)[0]
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
    backend = make(head, module, TorchEncoder(module), max(BATCHES))
    for batch in (1, 3, 8, 32):
        some = images[:batch]
        results.attempt(
            f"answers, batch {batch}",
            lambda some=some: answers(backend, specified(module, head, some), on_host_and_gpu(some)),
        )
    for name, work in () if quick else measurements(backend, module, head, images):
        results.attempt(name, work)
    backend.close()
    results.finish()


def measurements(backend: TwoStage, module: PatchEncoder, head: dict[str, np.ndarray], images: np.ndarray):
    """Names and calls of what is measured; each takes a few seconds."""
    for batch in BATCHES:
        some = images[:batch]
        yield (
            f"device, batch {batch}",
            lambda s=some: vars(summarize("device", len(s), *measure(backend.on_device(s), MEASURED_S))),
        )
        yield f"head, batch {batch}", lambda s=some: {"us": head_us(backend, len(s)), "launches": LAUNCHES}
        for callers in (1, 2, 4):
            call = lambda s=some: backend.scores(s)  # noqa: E731
            yield (
                f"model, batch {batch}, callers {callers}",
                lambda c=call, n=callers, s=some: vars(
                    summarize("model", len(s), *measure_callers(c, n, MEASURED_S), callers=n)
                ),
            )
        yield (
            f"PyTorch in a graph, batch {batch}",
            lambda s=some: vars(
                summarize("model", len(s), *measure(pytorch_call(module, head, s), MEASURED_S), side="PyTorch")
            ),
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
