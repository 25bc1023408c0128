"""Reads machine code: the instructions of each kernel in a cubin, its loops, and the one around the tanh unit."""

import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
LABEL = re.compile(r"^(\.L_x_\d+):")
FUNCTION = re.compile(r"^\.text\.(\w+):")
TANH = "MUFU.TANH"


def tool(name: str) -> Path:
    """An NVIDIA binary tool from its wheel."""
    files = metadata.files(f"nvidia-cuda-{name}")
    return next(Path(f.locate()) for f in files if f.name == name)


def functions(cubin: Path) -> dict[str, list[tuple[str, str] | str]]:
    """For each kernel its lines in order: (opcode, operands), or a label."""
    text = subprocess.run([tool("nvdisasm"), "-c", cubin], capture_output=True, check=True).stdout.decode(
        errors="replace"
    )
    found: dict[str, list] = {}
    current: list = []
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            current = found.setdefault(match[1], [])
        elif match := LABEL.match(line):
            current.append(match[1])
        elif match := INSTRUCTION.match(line):
            current.append((match[1], match[2]))
    return found


@dataclass(frozen=True)
class Loop:
    """Lines first..last of a kernel; own: the opcodes that are in no loop inside of it."""

    first: int
    last: int
    own: list[str]


def loops(lines: list) -> list[Loop]:
    """The loops of a kernel, by their branches back; what lies behind the last EXIT is rare cases, and left out."""
    labels = {line: i for i, line in enumerate(lines) if isinstance(line, str)}
    end = max(i for i, line in enumerate(lines) if isinstance(line, tuple) and line[0] == "EXIT")
    last: dict[int, int] = {}
    for i, line in enumerate(lines[:end]):
        if isinstance(line, tuple) and line[0].startswith("BRA"):
            target = re.search(r"\.L_x_\d+", line[1])
            if target and labels.get(target[0], i) < i:
                last[labels[target[0]]] = i
    found = []
    for first, end_of in last.items():
        inside = [(f, e) for f, e in last.items() if first <= f and e <= end_of and (f, e) != (first, end_of)]
        own = [
            line[0]
            for i, line in enumerate(lines[first : end_of + 1], first)
            if isinstance(line, tuple) and not any(f <= i <= e for f, e in inside)
        ]
        found.append(Loop(first, end_of, own))
    return found


def registers(lines: list) -> int:
    """How many registers a thread of a kernel names, in the steps of 8 in which they are given."""
    most = max(int(n) for line in lines if isinstance(line, tuple) for n in re.findall(r"\bR(\d+)\b", line[1]))
    return -(-(most + 1) // 8) * 8


def main_loop(lines: list) -> list[str]:
    """The opcodes of the shortest loop that holds most of the kernel's tanh instructions."""
    labels = {line: i for i, line in enumerate(lines) if isinstance(line, str)}
    loops = []
    for i, line in enumerate(lines):
        if isinstance(line, tuple) and line[0].startswith("BRA"):
            target = re.search(r"\.L_x_\d+", line[1])
            if target and labels.get(target[0], i) < i:
                loops.append([entry[0] for entry in lines[labels[target[0]] : i + 1] if isinstance(entry, tuple)])
    total = sum(isinstance(line, tuple) and line[0] == TANH for line in lines)
    around = [loop for loop in loops if loop.count(TANH) >= total / 2]
    return min(around, key=len)


def per_tanh(lines: list) -> float:
    """Instructions for each tanh in the main loop."""
    loop = main_loop(lines)
    return len(loop) / loop.count(TANH)
