"""What is planned from shapes alone is what the compilers then find: memory, and the choices made of it."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest

from models.sharding import MESH_AXES, MeshConfig, abstract_mesh, make_mesh
from tests.train.compile_many import WHOLE
from train.chips import parse_topology
from train.compile import compile_step, fitted, total_bytes
from train.config import Config, apply_overrides, load_config
from train.cost import ideal_traffic, seconds, step_flop, work
from train.fit import USABLE, auto_fit, fit_report, largest_rows
from train.memory import memory_by_kind
from train.plan import describe_run, dry_run

# Whole models, compiled by `python -m tests.train.compile_many --record`; minutes each, so their figures are kept.
KEPT = Path(__file__).parent / "compiled_memory.json"
RECORDED = json.loads(KEPT.read_text()) if KEPT.is_file() else {}


def sizes_of(config: Config) -> dict[str, int]:
    return dict(zip(MESH_AXES, dataclasses.astuple(config.mesh)))


@pytest.fixture(scope="module")
def state_8b():
    """The abstract state of pretrain_8b: the same shapes on every mesh."""
    config = dataclasses.replace(load_config("configs/pretrain_8b.py"), mesh=MeshConfig())
    return describe_run(config, abstract_mesh(config.mesh, 1)).state


def predicted(path: str, machine: str, overrides: list[str]) -> int:
    config = fitted(apply_overrides(load_config(path), overrides), parse_topology(machine))
    one = dataclasses.replace(config, mesh=MeshConfig())
    state = describe_run(one, abstract_mesh(one.mesh, 1)).state
    return sum(memory_by_kind(config, state, sizes_of(config), parse_topology(machine).platform).values())


@pytest.mark.parametrize("name", WHOLE)
def test_memory_predicted_from_shapes_is_within_15_percent_of_the_compilers(name: str):
    if name not in RECORDED:
        pytest.skip(f"not compiled yet: python -m tests.train.compile_many --record '{name}' keeps what it takes")
    one = RECORDED[name]
    assert predicted(one["config"], one["machine"], one["overrides"]) == pytest.approx(one["bytes"], rel=0.15)


def test_the_quickstarts_memory_on_a_cpu_is_predicted():
    config = load_config("configs/quickstart.py")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    program, _ = compile_step(config, mesh)
    found = sum(memory_by_kind(config, describe_run(config, mesh).state, dict(mesh.shape)).values())
    assert found == pytest.approx(total_bytes(program.memory_analysis()), rel=0.15)


@pytest.mark.slow
def test_auto_fit_chooses_what_fits_and_leaves_the_batch_alone(state_8b):
    config = load_config("configs/pretrain_8b.py")
    for machine in ("v6e:16x16", "v5p:4x4x4", "2*v5e:16x16", "h100:64"):
        topology = parse_topology(machine)
        choices = auto_fit(config, state_8b, topology)
        best = choices[0]
        assert best.config.loader == config.loader
        assert best.config.mesh.data % topology.slices == 0
        assert all(choice.memory <= USABLE * topology.memory for choice in choices)
        assert best.seconds == min(choice.seconds for choice in choices)
        again = apply_overrides(config, best.overrides)  # the overrides that it prints give the same config
        assert (again.mesh, again.train, again.model) == (best.config.mesh, best.config.train, best.config.model)
        assert math.prod(sizes_of(best.config).values()) == topology.devices
        assert machine in fit_report(choices, topology)
    few, many = (auto_fit(config, state_8b, parse_topology(f"v5p:{shape}"))[0] for shape in ("4x4x4", "8x8x8"))
    assert many.seconds < few.seconds / 6  # eight times the chips


def test_what_fits_nowhere_is_refused_with_what_it_would_need(state_8b):
    with pytest.raises(ValueError, match=r"no mesh.*the smallest needs [\d.]+ GiB"):
        auto_fit(load_config("configs/pretrain_8b.py"), state_8b, parse_topology("v5e:2x2"))


def test_the_largest_micro_batch_grows_with_what_the_compiler_left_free(state_8b):
    config, topology = load_config("configs/pretrain_8b.py"), parse_topology("v6e:16x16")
    rows = largest_rows(config, state_8b, topology)
    assert rows >= 4  # what the config has
    estimate = sum(memory_by_kind(config, state_8b, sizes_of(config)).values())
    assert largest_rows(config, state_8b, topology, estimate - (4 << 30)) > rows
    assert largest_rows(config, state_8b, topology, topology.memory + 1) < 4


def test_the_ideal_traffic_is_what_the_sharding_of_each_parameter_asks_for(state_8b):
    config = load_config("configs/pretrain_8b.py")
    found = ideal_traffic(config, state_8b, sizes_of(config), 256)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state_8b.params))
    split = num_params - 65 * 4096  # norms are whole everywhere
    tables = 2 * 128_256 * 4096
    gathered = sum(one.sent for one in found if one.kind == "all-gather")
    reduced = sum(one.sent for one in found if one.kind == "reduce-scatter")
    assert gathered == pytest.approx((2 * (split - tables) + tables) * 2 * 255 / 256, rel=1e-3)  # bfloat16
    assert reduced == pytest.approx(split * 2 * 255 / 256, rel=1e-3)
    tensor = apply_overrides(config, ["mesh.fsdp=32", "mesh.tensor=8"])
    rows = [one for one in ideal_traffic(tensor, state_8b, sizes_of(tensor), 256) if one.group == 8]
    assert [(one.kind, one.times) for one in rows] == [("all-reduce", 32 * 5 + 2)]


def test_a_step_takes_at_least_its_products_at_the_peak(state_8b):
    config, topology = load_config("configs/pretrain_8b.py"), parse_topology("v6e:16x16")
    sizes = sizes_of(config)
    flop = step_flop(config, state_8b, sizes) * 256
    tokens = 1024 * 4096
    whole_forward = 6 * 8.03e9 * tokens
    assert 1.15 * whole_forward < flop < 1.6 * whole_forward  # layers forward twice, the output once more
    times = seconds(work(config, state_8b, sizes, ideal_traffic(config, state_8b, sizes, 256)), topology)
    assert times["products"] == pytest.approx(flop / 256 / 918e12) and set(times) == {"products", "memory", "ICI"}
    halves = apply_overrides(config, ["mesh.data=2", "mesh.fsdp=128"])
    two = parse_topology("2*v6e:8x16")
    found = ideal_traffic(halves, state_8b, sizes_of(halves), two.domain)
    assert "network" in seconds(work(halves, state_8b, sizes_of(halves), found), two)


def test_the_dry_run_prints_the_choice(capsys: pytest.CaptureFixture):
    dry_run(load_config("configs/pretrain_1b.py"), auto_fit="v5e:8x8")
    text = capsys.readouterr().out
    assert "ways fit v5e:8x8" in text and "add to the command: mesh.data=" in text
    assert "memory of a device, an estimate from shapes" in text and "64 devices" in text


def test_gpus_come_in_whole_hosts():
    assert (parse_topology("h100:4").devices, parse_topology("h100:16").domain) == (4, 8)
    with pytest.raises(ValueError, match="12 GPUs are not whole hosts of 8"):
        parse_topology("h100:12")
