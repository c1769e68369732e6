"""Reads a compiled program (HLO text): which collectives run, how often, over which links, and the bytes they send."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]+\},?)+)\}")
MESHED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\((\[?)([\d,]+)\]?(?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}"
)
# What TPU slices do together is written as a transfer to the hosts, who do it: `{0,1}x{0:15}`, slices x chips.
BETWEEN_SLICES = re.compile(r'_xla_megascale_target="\{([^}]*)\}.*?_xla_megascale_transfer_type="(\w+)"')
CHANNEL = re.compile(r"channel_id=(\d+)")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """A collective of a program, on one device.

    size: bytes of its result, each time. group: devices that take part together. network: whether a group reaches over
    slices (or hosts of GPUs), so that its bytes go over the data-centre network. stride: between the numbers of
    neighbours in a group, which says along which axis of the mesh it lies.
    """

    kind: str
    times: int
    size: int
    group: int
    network: bool
    stride: int = 1

    @property
    def sent(self) -> int | float:
        """Bytes that one device sends in all times, by the ring algorithms' counts (Thakur et al. 2005)."""
        others = self.group - 1
        each = {
            "all-gather": self.size * others / self.group,
            "reduce-scatter": self.size * others,  # its result is one part of what it read
            "all-reduce": 2 * self.size * others / self.group,
            "all-to-all": self.size * others / self.group,
        }
        return self.times * each.get(self.kind, self.size)


def collectives(text: str, domain: int | None = None) -> list[Collective]:
    """The collectives of a compiled program, those that are alike as one.

    One inside a loop runs once an iteration where the compiler knows their number; of a conditional all branches count.
    An all-reduce whose result is cut into parts at once, as TPU compilers write it, is a reduce-scatter.
    domain: devices that fast links join, in the order of the mesh; None: all.
    """
    limits, starts = loop_limits(text), loop_starts(text)
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    found: dict[str, list[tuple[str, int, int, bool, int]]] = defaultdict(list)
    # One that runs beside other work is written in several fusions, once for each of its parts.
    channels: set[tuple[str, str]] = set()
    fused = set(re.findall(r" fusion\(.*?calls=%?([\w.\-]+)", text))
    devices = int(match[1]) if (match := re.search(r"num_partitions=(\d+)", text)) else 1
    entry = computation = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            computation = header[2]
            entry = computation if header[1] else entry
        elif instruction := INSTRUCTION.match(line):
            shape, operation, rest = instruction.groups()
            kind = operation.removesuffix("-start")
            channel = CHANNEL.search(rest)
            part = (kind, channel[1]) if channel and computation in fused else None
            if kind in KINDS and part not in channels:
                channels |= {part} if part else set()
                groups = device_groups(rest, devices)
                size, group = result_bytes(shape, operation), max(map(len, groups))
                if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
                    kind, size = "reduce-scatter", size // group
                network = domain is not None and any(len({device // domain for device in ids}) > 1 for ids in groups)
                stride = max((ids[1] - ids[0] for ids in groups if len(ids) > 1), default=1)
                found[computation].append((kind, size, group, network, stride))
            elif operation == "send" and (between := BETWEEN_SLICES.search(rest)):
                slices = numbers(between[1])
                kind = between[2].lower().replace("_", "-")
                found[computation].append((kind, result_bytes(shape, operation), slices, True, devices))
            times = trip_count(rest, limits, starts) if operation == "while" else 1
            names = CALLED.findall(rest) + [
                name.strip().lstrip("%") for group in BRANCHES.findall(rest) for name in group.split(",")
            ]
            calls[computation] += [(name, times) for name in names]
    totals: dict[tuple[str, int, int, bool, int], int] = defaultdict(int)
    for name, times in runs(entry, calls).items():
        for one in found[name]:
            totals[one] += times
    return [
        Collective(kind, times, size, group, network, stride)
        for (kind, size, group, network, stride), times in totals.items()
    ]


def device_groups(rest: str, devices: int) -> Sequence[Sequence[int]]:
    """Who takes part with whom: `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)` (an iota), pairs, or all devices."""
    if iota := IOTA.search(rest):
        shape, dims = ([int(size) for size in iota[index].split(",")] for index in (1, 2))
        order = [int(axis) for axis in iota[3].split(",")] if iota[3] else list(range(len(dims)))
        return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape).tolist()
    if meshed := MESHED.search(rest):
        names, sizes = zip(*((name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed[1])))
        inside = [names.index(name) for name in re.findall(r"'(\w+)'", meshed[5])]
        outside = [axis for axis in range(len(names)) if axis not in inside]
        ids = np.arange(math.prod(sizes))
        if given := [int(i) for i in (meshed[3] or "").split(",") if i]:
            order = [int(axis) for axis in meshed[4].split(",")] if meshed[4] else list(range(len(given)))
            ids = ids.reshape(given).transpose(order) if meshed[2] else np.array(given)
        group = math.prod(sizes[axis] for axis in inside)
        return ids.reshape(sizes).transpose(outside + inside).reshape(-1, group).tolist()
    if listed := LISTED.search(rest):
        return [[int(device) for device in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    return [list(range(devices))]


def numbers(text: str) -> int:
    """How many numbers `0,1` or `0:3` names, the ends included."""
    ends = [part.split(":") for part in text.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def loop_limits(text: str) -> dict[str, int]:
    """{condition: N} of the loops that run while a counter is below the constant N."""
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


def loop_starts(text: str) -> dict[str, int]:
    """{tuple: n} of the tuples that begin with the constant n, as a loop's values do with its counter. One of which an
    iteration was taken out begins at 1."""
    constants = {name: int(value) for name, value in re.findall(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", text)}
    copies = dict(re.findall(r"%([\w.\-]+) = s32\[\]\S* copy\(%([\w.\-]+)\)", text))
    first = re.findall(r"%([\w.\-]+) = \(.* tuple\(%([\w.\-]+)", text)
    return {name: constants.get(copies.get(value, value), 0) for name, value in first}


def trip_count(rest: str, limits: dict[str, int], starts: dict[str, int]) -> int:
    """Iterations of a `while`: what the compiler wrote beside it (CPU, GPU), or from its start to its condition's limit
    (TPU), or 1."""
    if trips := TRIPS.search(rest):
        return int(trips[1])
    condition, begin = re.search(r"condition=%?([\w.\-]+)", rest), re.match(r"%?([\w.\-]+)", rest)
    if not condition or not begin or condition[1] not in limits:
        return 1
    return limits[condition[1]] - starts.get(begin[1], 0)


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
    """Bytes of an operation's result. A "-start" has its operands in front of it (but for an all-reduce)."""
    sizes = [
        math.prod(int(size) for size in dims.split(",") if size) * item_bits(dtype) // 8
        for dtype, dims in ARRAY.findall(shape)
        if not (operation.endswith("-start") and dtype == "u32" and not dims)  # contexts of the running operation
    ]
    if operation.endswith("-start") and operation != "all-reduce-start":
        sizes = sizes[len(sizes) // 2 :]
    return sizes[0] if operation == "send" else sum(sizes)  # which also has a context


def item_bits(dtype: str) -> int:
    """Bits of an element: of `s32` 32, of `bf16` 16, of `f8e4m3fn` 8."""
    if dtype in ITEM_BITS:
        return ITEM_BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0


def custom_calls(text: str) -> list[str]:
    """Names of the kernels that the program calls from outside the compiler, sorted."""
    return sorted(set(re.findall(r'custom_call_target="([^"]+)"', text)))
