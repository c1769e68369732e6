"""Reads a compiled program (HLO text): which collectives run, how often, and how many bytes they make."""

import math
import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
ITEM_BITS = {
    "pred": 8,
    "bf16": 16,
    "f16": 16,
    "f32": 32,
    "f64": 64,
    "c64": 64,
    "c128": 128,
}  # and s8, u32, f8e4m3fn ...
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.+?) ([\w\-]+)\((.*)$")
CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation|called_computations)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count":?\{"?n"?:"?(\d+)')
INTEGER = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """{kind: (times a step, bytes a step)} of the collectives of a compiled program, on one device.

    Bytes are those of the operation's result. One inside a loop counts once an iteration where the compiler knows their
    number; a conditional counts all of its branches.
    """
    limits = loop_limits(text)
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    entry = computation = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            computation = header[2]
            entry = computation if header[1] else entry
        elif instruction := INSTRUCTION.match(line):
            shape, operation, rest = instruction.groups()
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                found[computation].append((kind, result_bytes(shape, operation)))
            times = trip_count(rest, limits) if operation == "while" else 1
            names = CALLED.findall(rest) + [
                name.strip().lstrip("%") for group in BRANCHES.findall(rest) for name in group.split(",")
            ]
            calls[computation] += [(name, times) for name in names]
    totals: dict[str, tuple[int, int]] = {}
    for name, times in runs(entry, calls).items():
        for kind, size in found[name]:
            count, total = totals.get(kind, (0, 0))
            totals[kind] = (count + times, total + times * size)
    return totals


def loop_limits(text: str) -> dict[str, int]:
    """{condition: N} of the loops that run while a counter is below the constant N; a scan's counter begins at 0."""
    constants: dict[str, list[int]] = defaultdict(list)
    counted: set[str] = set()
    computation = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            computation = header[2]
        elif constant := INTEGER.search(line):
            constants[computation].append(int(constant[1]))
        elif "ROOT" in line and "direction=LT" in line:
            counted.add(computation)
    return {name: constants[name][0] for name in counted if len(constants[name]) == 1}


def trip_count(rest: str, limits: dict[str, int]) -> int:
    """Iterations of a `while`: what the compiler wrote beside it (CPU, GPU), or its condition's limit (TPU), or 1."""
    if trips := TRIPS.search(rest):
        return int(trips[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    return limits.get(condition[1], 1) if condition else 1


def runs(entry: str, calls: dict[str, list[tuple[str, int]]]) -> dict[str, int]:
    """How often each computation runs in one run of the entry. Computations call no computation that calls them."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            for called, _ in calls[name]:
                visit(called)
            order.append(name)

    visit(entry)
    times: dict[str, int] = defaultdict(int, {entry: 1})
    for name in reversed(order):
        for called, factor in calls[name]:
            times[called] += times[name] * factor
    return times


def result_bytes(shape: str, operation: str) -> int:
    """Bytes of an operation's result; of a "-start", whose result holds its operands too, the last and largest part."""
    sizes = [
        math.prod(int(size) for size in dims.split(",") if size) * item_bits(dtype) // 8
        for dtype, dims in ARRAY.findall(shape)
    ]
    if not sizes:
        return 0
    return max(sizes) if operation.endswith("-start") else sum(sizes)


def item_bits(dtype: str) -> int:
    """Bits of an element: of `s32` 32, of `bf16` 16, of `f8e4m3fn` 8."""
    if dtype in ITEM_BITS:
        return ITEM_BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0


def custom_calls(text: str) -> list[str]:
    """Names of the kernels that the program calls from outside the compiler, sorted."""
    return sorted(set(re.findall(r'custom_call_target="([^"]+)"', text)))
