"""The rules table, meshes, and where the parameters of a model come to lie."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from models.config import ModelConfig
from models.sharding import MeshConfig, abstract_mesh, check_mesh, make_mesh, param_shardings, partition_spec, rings
from models.transformer import abstract_model, create_model

CONFIG = ModelConfig(
    vocab_size=64, num_layers=2, embed_dim=32, num_heads=8, num_kv_heads=8, head_dim=4, mlp_dim=48, dtype="float32"
)


def test_a_rule_that_would_split_two_dims_by_one_mesh_axis_is_refused():
    with pytest.raises(ValueError, match=r"w with axes .* 'tensor' on both 'heads' and 'mlp'"):
        partition_spec(("heads", "mlp"), where="w")
    with pytest.raises(ValueError, match="no sharding rule for axis 'hedas'"):
        partition_spec(("hedas",))
    assert partition_spec(("layers", "embed", "mlp")) == PartitionSpec(None, "fsdp", "tensor")


def test_parameters_lie_as_the_rules_say_and_do_not_depend_on_the_mesh():
    values = {}
    for mesh_config in (MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)):
        mesh = make_mesh(mesh_config)
        assert mesh.axis_types == (AxisType.Auto,) * len(mesh.shape)
        model = create_model(CONFIG, mesh, seed=3)
        up = model.layers.mlp.up.kernel.get_value()
        assert up.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor")), 3)
        pieces = mesh_config.fsdp * mesh_config.tensor
        assert up.addressable_shards[0].data.size == up.size // pieces
        values[mesh_config] = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
    first, *others = values.values()
    for other in others:
        for ours, expected in zip(other, first):
            np.testing.assert_array_equal(ours, expected)


def test_parameters_that_shardings_cut_are_gathered_and_activations_stay():
    """fsdp moves weights, not activations: only all-gathers in the forward pass, no all-reduce."""
    mesh = make_mesh(MeshConfig(fsdp=8))
    graph, shapes = nnx.split(abstract_model(CONFIG))
    placed = param_shardings(shapes, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)
    batch = jax.ShapeDtypeStruct((8, 16), np.int32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None)))
    with jax.set_mesh(mesh):
        text = (
            jax.jit(lambda state, *batch: nnx.merge(graph, state)(*batch))
            .lower(state, *[batch] * 3)
            .compile()
            .as_text()
        )
    assert "all-gather" in text
    assert not any(f" {kind}(" in text for kind in ("all-reduce", "all-to-all", "collective-permute"))


@pytest.mark.parametrize(
    ("mesh", "changes", "batch", "words"),
    [
        (MeshConfig(tensor=8), {"num_kv_heads": 4}, None, "num_kv_heads=4"),
        (MeshConfig(tensor=8), {"vocab_size": 61}, None, "vocab_size=61"),
        (MeshConfig(fsdp=8), {"embed_dim": 36}, None, "embed_dim=36"),
        (MeshConfig(data=4, fsdp=2), {}, 12, "batch of 12 rows"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused_with_one_line(
    mesh: MeshConfig, changes: dict, batch: int | None, words: str
):
    with pytest.raises(ValueError, match=words) as error:
        check_mesh(replace(CONFIG, **changes), make_mesh(mesh), batch)
    assert "\n" not in str(error.value)


def test_mesh_sizes_are_resolved_or_refused():
    assert MeshConfig(data=-1, tensor=2).shape(8) == (4, 1, 1, 2)
    assert make_mesh(MeshConfig(fsdp=2)).size == 2  # the first devices of one process
    for mesh, words in (
        (MeshConfig(data=16), "needs 16 devices, 8 cpu devices"),
        (MeshConfig(data=-1, fsdp=3), "multiple"),
    ):
        with pytest.raises(ValueError, match=words):
            make_mesh(mesh)
    with pytest.raises(ValueError, match="at most one"):
        MeshConfig(data=-1, fsdp=-1)
    with pytest.raises(ValueError, match="expected 64"):
        abstract_mesh(MeshConfig(fsdp=32), 64)


def test_shardings_exist_for_devices_that_do_not():
    mesh = abstract_mesh(MeshConfig(fsdp=32, tensor=8), 256)
    config = replace(CONFIG, embed_dim=64)
    tree = param_shardings(nnx.state(abstract_model(config)), mesh)
    assert tree["layers"]["attention"]["out"]["kernel"].get_value().spec == PartitionSpec(None, "tensor", "fsdp")
    with pytest.raises(ValueError, match=r"fsdp=32 does not divide dim 1 of embedding, which has shape \(64, 36\)"):
        param_shardings(nnx.state(abstract_model(replace(CONFIG, embed_dim=36))), mesh)


def test_devices_are_laid_along_the_rings_of_their_torus():
    assert [rings(count, "TPU v6 lite") for count in (1, 2, 8, 16, 32, 256)] == [
        (1,),
        (2,),
        (4, 2),
        (4, 4),
        (8, 4),
        (16, 16),
    ]
    assert [rings(count, "TPU v5") for count in (1, 4, 16, 64, 24)] == [(1,), (2, 2), (4, 2, 2), (4, 4, 4), (3, 4, 2)]
    assert rings(8, "NVIDIA H100 80GB HBM3") == rings(8, "cpu") == (8,)
