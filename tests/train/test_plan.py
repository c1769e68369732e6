"""The dry run: what it says of a run is what the run then has, and it makes no arrays."""

import dataclasses
import re
import time

import jax
import pytest

from models.config import ModelConfig
from models.sharding import MeshConfig, abstract_mesh
from train.collectives import Collective, collectives, device_groups
from train.config import apply_overrides, load_config
from train.memory import memory_by_kind
from train.plan import describe_run, dry_run, plan


def config_8b(*overrides: str):
    return apply_overrides(load_config("configs/pretrain_8b.py"), overrides)


def test_eight_billion_parameters_on_64_devices_are_planned_in_seconds(capsys: pytest.CaptureFixture):
    begin = time.process_time()
    dry_run(config_8b("mesh.fsdp=64"))
    assert time.process_time() - begin < 30
    text = capsys.readouterr().out
    assert "8,030,261,248 parameters" in text  # Llama 3 8B's published count
    assert "fsdp=64" in text and "64 devices" in text
    assert re.search(r"layers\.mlp\.up\.kernel +32x4096x14336 +float32 +-, fsdp, tensor +112\.00", text)
    for line in (
        "parameters",
        "gradients",
        "optimizer",
        "activations saved",
        "one layer's",
        "FLOP a token",
        "cudnn_packed",
    ):
        assert line in text


def test_a_device_holds_its_share_of_parameters_and_moments():
    config = config_8b("mesh.fsdp=64")
    mesh = abstract_mesh(config.mesh, 64)
    run = describe_run(config, mesh)
    memory = memory_by_kind(config, run.state, mesh.shape)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
    norms = (2 * 32 + 1) * 4096  # norms are not split
    assert memory["parameters"] == (num_params - norms) * 4 // 64 + norms * 4
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=1e-6)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((run.state, run.batch)))


def test_rematerialisation_and_accumulation_lower_the_activations():
    def activations(*overrides: str) -> int:
        config = config_8b("mesh.fsdp=64", *overrides)
        mesh = abstract_mesh(config.mesh, 64)
        return memory_by_kind(config, describe_run(config, mesh).state, mesh.shape)["activations saved"]

    full, dots = activations(), activations("model.execution.remat='dots'")
    none = activations("model.execution.remat='none'")
    assert full < dots < none
    assert activations("train.grad_accum_steps=4") == full // 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("mesh.fsdp=60",), "fsdp=60 does not divide model.embed_dim=4096"),
        (("mesh.fsdp=8", "mesh.tensor=16"), "num_kv_heads=8"),
        (("mesh.fsdp=64", "loader.global_batch_size=100"), "batch of 100 rows"),
        (("mesh.fsdp=8", "mesh.context=3"), "mesh.context=3 does not divide loader.seq_len=4096"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused_before_anything_starts(overrides: tuple[str, ...], words: str):
    with pytest.raises(ValueError, match=words):
        dry_run(config_8b(*overrides))


def test_the_plan_of_a_run_on_this_machine_names_its_mesh():
    config = load_config("configs/quickstart.py")
    text = plan(dataclasses.replace(config, mesh=MeshConfig()), abstract_mesh(MeshConfig(), 1))
    assert "data=1 x fsdp=1 x context=1 x tensor=1 (1 devices)" in text
    assert isinstance(config.model, ModelConfig) and f"x{config.model.mlp_dim}" in text


HLO = """HloModule step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}, num_partitions=8

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %gathered = bf16[4,1024]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %again = bf16[4,1024]{1,0} all-gather(%x2), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %start = ((f32[16]{0}, f32[2]{0}), (f32[128]{0}, f32[16]{0})) all-gather-start(%y, %z), replica_groups=[1,8]<=[8]
  %done = (f32[128]{0}, f32[16]{0}) all-gather-done(%start)
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %z)
}

%below (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%moved (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %m = (s32[], f32[8]{0}) collective-permute(%p), channel_id=3, source_target_pairs={{0,4},{4,0}}
}

%later (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %m = (s32[], f32[4]{0}) all-to-all(%p), channel_id=4, replica_groups={{0,1},{2,3},{4,5},{6,7}}
}

%first_part (p: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} all-reduce(%p), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, to_apply=%add
}

%second_part (p: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} all-reduce(%p), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, to_apply=%add
}

%all-reduce-scatter.1 (p: f32[8]) -> f32[2] {
  %r = f32[8]{0} all-reduce(%p), channel_id=10, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %s = f32[2]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={2}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"32"}}
  %w2 = (s32[], f32[8]{0}) while(%w), condition=%below, body=%moved
  %c = f32[8]{0} fusion(%a), calls=%first_part
  %d = f32[8]{0} fusion(%c), calls=%second_part
  %e = f32[2]{0} fusion(%d), calls=%all-reduce-scatter.1
  %n = (f32[6,1]{0}, u32[], token[]) send(%c, %t), channel_id=2, is_host_transfer=true, frontend_attributes={HOSTS}
  %one = s32[]{:T(128)} constant(1)
  %begin = s32[]{:T(128)} copy(%one)
  %rest = (s32[]{:T(128)}, f32[8]{0}) tuple(%begin, %e)
  %w3 = (s32[], f32[8]{0}) while(%rest), condition=%below, body=%later
  ROOT %s = f32[2]{0} reduce-scatter(%c), channel_id=11, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
}
""".replace(
    "HOSTS",
    '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",'
    '_xla_megascale_target="{0,1}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"',
)


def test_collectives_are_counted_as_often_as_their_loop_runs_by_group_and_link():
    assert sorted(collectives(HLO, domain=4), key=lambda one: (one.kind, one.group, one.times, one.size)) == [
        Collective("all-gather", 64, 4 * 1024 * 2, 4, False),  # two of one channel: of `shard_map` all have the same
        Collective("all-gather", 32, 128 * 4 + 16 * 4, 8, True),
        Collective("all-reduce", 1, 24, 2, True, 8),  # by the hosts of two slices
        Collective("all-reduce", 1, 32, 2, True, 4),  # written once for each of its parts
        Collective("all-to-all", 3, 4 + 4 * 4, 2, False),  # from 1 to below 4: one iteration was taken out
        Collective("collective-permute", 4, 4 + 8 * 4, 2, True, 4),  # a TPU program: its condition has the limit
        Collective("reduce-scatter", 1, 8, 2, True, 4),
        Collective("reduce-scatter", 1, 8, 4, False),  # an all-reduce of which each device keeps its part
    ]
    assert [one.size for one in collectives(HLO) if one.network] == [24]


def test_a_ring_sends_the_bytes_that_are_known_of_it():
    sent = {
        kind: Collective(kind, 3, 1000, 4, False).sent for kind in ("all-gather", "all-reduce", "collective-permute")
    }
    assert sent == {"all-gather": 2250, "all-reduce": 4500, "collective-permute": 3000}
    assert Collective("reduce-scatter", 1, 250, 4, False).sent == 750  # a quarter of 1000 is what stays


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", [[3, 2], [1, 0]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_devices_are_read_in_every_form(written: str, groups: list[list[int]]):
    assert device_groups(written, 4) == groups
