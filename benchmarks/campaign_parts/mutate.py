"""Damaging bytes on purpose: blind, and knowing a little of the format."""

import zlib

import numpy as np

INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(content: bytes, others: list[bytes], random: np.random.Generator) -> bytes:
    """The content with 1 to 8 changes; `others` lend pieces. A PNG's checksums are then made right half of the time."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        CHANGES[int(random.integers(len(CHANGES)))](data, others, random)
    if data[:4] == b"\x89PNG" and random.random() < 0.5:
        return _with_right_checksums(bytes(data))
    return bytes(data)


def _place(data: bytearray, random: np.random.Generator, room: int = 1) -> int:
    """Somewhere, half of the time among the first 200 bytes, where headers are."""
    end = max(1, len(data) - room + 1)
    return int(random.integers(min(end, 200) if random.random() < 0.5 else end))


def _flip(data: bytearray, others: list[bytes], random: np.random.Generator) -> None:
    if data:
        data[_place(data, random)] ^= 1 << int(random.integers(8))


def _byte(data: bytearray, others: list[bytes], random: np.random.Generator) -> None:
    if data:
        data[_place(data, random)] = int(random.integers(256))


def _number(data: bytearray, others: list[bytes], random: np.random.Generator) -> None:
    """A length, count or offset of 2 or 4 bytes in either order."""
    size = int(random.choice([2, 4]))
    value = INTERESTING[int(random.integers(len(INTERESTING)))] % (1 << 8 * size)
    at = _place(data, random, size)
    data[at : at + size] = value.to_bytes(size, "big" if random.random() < 0.5 else "little")


def _cut(data: bytearray, others: list[bytes], random: np.random.Generator) -> None:
    del data[_place(data, random) :]


def _delete(data: bytearray, others: list[bytes], random: np.random.Generator) -> None:
    at = _place(data, random)
    del data[at : at + int(random.integers(1, 64))]


def _repeat(data: bytearray, others: list[bytes], random: np.random.Generator) -> None:
    at = _place(data, random)
    data[at:at] = data[at : at + int(random.integers(1, 256))] * int(random.integers(1, 4))


def _insert(data: bytearray, others: list[bytes], random: np.random.Generator) -> None:
    at = _place(data, random)
    data[at:at] = random.bytes(int(random.integers(1, 32)))


def _splice(data: bytearray, others: list[bytes], random: np.random.Generator) -> None:
    other = others[int(random.integers(len(others)))]
    start = int(random.integers(max(1, len(other))))
    at = _place(data, random)
    piece = other[start : start + int(random.integers(1, 512))]
    data[at : at + (len(piece) if random.random() < 0.5 else 0)] = piece


CHANGES = (_flip, _flip, _byte, _byte, _number, _number, _cut, _delete, _repeat, _insert, _splice)


def _with_right_checksums(png: bytes) -> bytes:
    at = 8
    data = bytearray(png)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)
