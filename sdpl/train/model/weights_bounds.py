"""What a file of weights may be: the boundary that it passes before and after it is loaded."""

import pickletools
import zipfile
from pathlib import Path

import torch

MAX_BYTES = 64 << 30  # of a file
MAX_HEADER = 16 << 20  # of a safetensors file; its tensors then fill the file exactly, which the library checks
MAX_CODE = 16 << 20  # of all code in a TorchScript archive, unpacked
MAX_UNPACKED = 256 << 20  # of all that an archive holds compressed; PyTorch stores tensors as they are
MAX_ENTRIES = 100_000  # of an archive; and tensors
SHARED = 4  # times the file's size: all its tensors, where several share their numbers


def require_file(path: Path) -> None:
    """Raise ValueError for what is no regular file of a possible size, or announces more than it may."""
    if not path.is_file():
        raise ValueError("it is no regular file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes, more than {MAX_BYTES:,}")
    if path.suffix == ".safetensors":
        with open(path, "rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        if header > MAX_HEADER:
            raise ValueError(f"its header announces {header:,} bytes, more than {MAX_HEADER:,}")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED)
        stored = sum(entry.file_size for entry in entries) - unpacked
        if len(entries) > MAX_ENTRIES or unpacked > MAX_UNPACKED or stored > size:
            raise ValueError(f"its {len(entries):,} entries would unpack to {unpacked + stored:,} bytes")


def read_code(archive: zipfile.ZipFile) -> str:
    """The code in a TorchScript archive, as text. Raises ValueError when it is more than MAX_CODE bytes."""
    entries = [entry for entry in archive.infolist() if "/code/" in entry.filename and entry.filename.endswith(".py")]
    texts, room = [], MAX_CODE
    if sum(entry.file_size for entry in entries) > room:
        raise ValueError(f"its code has more than {MAX_CODE >> 20} MB")
    for entry in entries:
        with archive.open(entry) as stream:
            texts.append(stream.read(room + 1))
        room -= len(texts[-1])
        if room < 0:
            raise ValueError(f"its code has more than {MAX_CODE >> 20} MB")
    return "\n".join(text.decode(errors="replace") for text in texts)


def require_pickles(archive: zipfile.ZipFile) -> None:
    """Raise ValueError for a pickle in a TorchScript archive that announces more than it holds: PyTorch's native reader
    takes the memory first. Its operations are only listed here, not carried out."""
    for entry in archive.infolist():
        if entry.filename.endswith(".pkl"):
            if entry.file_size > MAX_CODE:
                raise ValueError(f"its {entry.filename} has more than {MAX_CODE >> 20} MB")
            for _ in pickletools.genops(archive.read(entry)):
                pass


def require_tensors(state: dict[str, torch.Tensor], path: Path) -> None:
    """Raise ValueError for tensors that are larger than the numbers in the file, which copies of them would not be."""
    if len(state) > MAX_ENTRIES:
        raise ValueError(f"it has {len(state):,} tensors")
    total = 0
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{name} is a {tensor.layout} tensor on {tensor.device}, expected a plain one")
        size = tensor.numel() * tensor.element_size()
        total += size
        if size > tensor.untyped_storage().nbytes() or total > SHARED * path.stat().st_size:
            raise ValueError(f"{name} {list(tensor.shape)} is larger than what the file holds of it")
