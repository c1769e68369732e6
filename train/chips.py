"""Accelerators by their published figures: memory, peaks, and the links between them.

A machine is CHIP:SHAPE, several slices of it N*CHIP:SHAPE: v6e:16x16, v5p:4x4x4, 2*v6e:4x4, h100:8.
"""

import math
from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator.

    memory_gib: its high-bandwidth memory, GiB. flop_per_s: dense bfloat16 products. memory_bytes_per_s: of that memory.
    link_bytes_per_s: what one chip sends over all of its links to chips of its slice (ICI) or host (NVLink).
    network_bytes_per_s: its share of its host's data-centre network. axis_links: the links of one ring of the torus as
    a share of all; 1 where every chip reaches every other. devices: devices that jax shows of one chip.
    """

    memory_gib: int
    flop_per_s: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    link: str = "ICI"
    axis_links: float = 1.0
    devices: int = 1
    domain: int | None = None  # chips that the fast links join; None: the whole slice


# Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "System architecture"; the links there are both ways
# together and halved here. v4's links: Jouppi et al. 2023 (arXiv:2304.01433), table 4, 6 links of 50 GB/s; its network
# is taken as v5p's. v5e's network: 6.4 Tbit/s a pod of 256; v5p's: 50, v6e's and 7x's: 100 Gbit/s a chip.
# H100: NVIDIA's H100 SXM data sheet (NVLink 900 GB/s both ways) and one 400 Gbit/s adapter a GPU (DGX H100).
CHIPS = {
    "v4": Chip(
        memory_gib=32, flop_per_s=275e12, memory_bytes_per_s=1.2e12, link_bytes_per_s=300e9,
        network_bytes_per_s=6.25e9, axis_links=1 / 3,
    ),
    "v5e": Chip(
        memory_gib=16, flop_per_s=197e12, memory_bytes_per_s=819e9, link_bytes_per_s=200e9,
        network_bytes_per_s=3.125e9, axis_links=1 / 2,
    ),
    "v5p": Chip(
        memory_gib=95, flop_per_s=459e12, memory_bytes_per_s=2.765e12, link_bytes_per_s=600e9,
        network_bytes_per_s=6.25e9, axis_links=1 / 3,
    ),
    "v6e": Chip(
        memory_gib=32, flop_per_s=918e12, memory_bytes_per_s=1.638e12, link_bytes_per_s=400e9,
        network_bytes_per_s=12.5e9, axis_links=1 / 2,
    ),
    "tpu7x": Chip(
        memory_gib=192, flop_per_s=2307e12, memory_bytes_per_s=7.38e12, link_bytes_per_s=600e9,
        network_bytes_per_s=12.5e9, axis_links=1 / 3, devices=2,
    ),
    "h100": Chip(
        memory_gib=80, flop_per_s=989e12, memory_bytes_per_s=3.35e12, link_bytes_per_s=450e9,
        network_bytes_per_s=50e9, link="NVLink", domain=8,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """`slices` slices (or one group of GPUs) of `shape` chips."""

    chip: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def about(self) -> Chip:
        """The figures of its chip."""
        return CHIPS[self.chip]

    @property
    def chips(self) -> int:
        """Chips in all."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Devices that jax shows."""
        return self.chips * self.about.devices

    @property
    def domain(self) -> int:
        """Devices that fast links join; between such groups runs the network."""
        chips = self.about.domain or self.chips // self.slices
        return min(chips, self.chips) * self.about.devices

    @property
    def memory(self) -> int:
        """Bytes of one device."""
        return self.about.memory_gib * GIB // self.about.devices

    @property
    def platform(self) -> str:
        """ "tpu" or "gpu"."""
        return "gpu" if self.chip == "h100" else "tpu"

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return (f"{self.slices}*" if self.slices > 1 else "") + f"{self.chip}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str) -> Topology:
    """The machine that "v6e:16x16", "2*v5e:4x4" or "h100:8" names.

    Raises:
      ValueError: no such chip, or no such shape.
    """
    number, star, rest = text.rpartition("*")
    chip, _, shape = rest.partition(":")
    sizes = shape.split("x")
    whole = all(size.isdigit() and int(size) > 0 for size in (*sizes, *((number,) if star else ())))
    if chip not in CHIPS or not whole:
        raise ValueError(
            f"--compile {text}: expected CHIP:SHAPE such as v6e:16x16, v5p:4x4x4, 2*v5e:4x4 (two slices) or h100:8; "
            f"chips: {', '.join(CHIPS)}"
        )
    if star and chip == "h100":
        raise ValueError(f"--compile {text}: GPUs have no slices; write h100:N with all GPUs")
    if chip == "h100" and (gpus := math.prod(map(int, sizes))) > 8 and gpus % 8:
        raise ValueError(f"--compile {text}: {gpus} GPUs are not whole hosts of 8")
    return Topology(chip, tuple(map(int, sizes)), int(number) if star else 1)
