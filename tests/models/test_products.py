"""Products with split weights give the plain product's gradients, and move no more bytes than they must."""

import math

import jax
import jax.numpy as jnp
import pytest

from models.products import looked_up, weight_product
from models.sharding import MeshConfig, NamedSharding, PartitionSpec, make_mesh
from train.collectives import collectives

MESHES = (MeshConfig(fsdp=4), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=2, context=2, tensor=2))


def total(w_VD: jax.Array, w_IO: jax.Array, ids_BT: jax.Array) -> jax.Array:
    x_BTI = looked_up(w_VD, ids_BT, ("vocab", "embed"))
    return jnp.sum(jnp.sin(weight_product(jnp.cos(x_BTI), w_IO, ("embed", "mlp"))))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_gradients_are_those_of_one_device(mesh: MeshConfig):
    keys = jax.random.split(jax.random.key(0), 3)
    table, kernel = jax.random.normal(keys[0], (12, 8)), jax.random.normal(keys[1], (8, 6))
    ids = jax.random.randint(keys[2], (4, 4), 0, 12)
    alone = jax.grad(total, (0, 1))(table, kernel, ids)
    with jax.set_mesh(make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.context * mesh.tensor])):
        split = jax.jit(jax.grad(total, (0, 1)))(table, kernel, ids)
    for one, other in zip(alone, split):
        assert jnp.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("sizes", [(2, 2), (4, 2), (2, 2, 2)], ids=str)
def test_gradients_that_are_reduced_ring_by_ring_are_those_of_one_device(monkeypatch, sizes: tuple[int, ...]):
    """As on a TPU's torus."""
    monkeypatch.setattr("models.products.rings", lambda devices, kind: sizes)
    keys, count = jax.random.split(jax.random.key(0), 3), math.prod(sizes)
    table, kernel = jax.random.normal(keys[0], (12, 16)), jax.random.normal(keys[1], (16, 6))
    ids = jax.random.randint(keys[2], (8, 4), 0, 12)
    alone = jax.grad(total, (0, 1))(table, kernel, ids)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=count), jax.devices()[:count])):
        parts = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec("fsdp", None))
        program = jax.jit(jax.grad(total, (0, 1)), out_shardings=(None, parts)).lower(table, kernel, ids).compile()
        split = program(table, kernel, ids)
    for one, other in zip(alone, split):
        assert jnp.allclose(one, other, atol=1e-5)
    reduced = [one for one in collectives(program.as_text()) if one.kind == "reduce-scatter"]
    assert {one.group for one in reduced} == set(sizes)


def test_a_rematerialised_layer_gathers_a_weight_twice_and_reduces_its_gradient_once_into_parts():
    layers, mesh = 6, make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])

    def loss(w_LIO: jax.Array, x_BTI: jax.Array) -> jax.Array:
        layer = jax.checkpoint(lambda x, w: jnp.sin(weight_product(x, w, ("embed", "mlp"))))
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.sin(layer(x, w)), None), x_BTI, w_LIO)[0])

    with jax.set_mesh(mesh):
        kept = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
        rows = NamedSharding(mesh, PartitionSpec("fsdp", None, None))
        step = jax.jit(jax.grad(loss), in_shardings=(kept, rows), out_shardings=kept)
        shapes = (jax.ShapeDtypeStruct((layers, 8, 8), jnp.float32), jax.ShapeDtypeStruct((4, 2, 8), jnp.float32))
        program = step.lower(*shapes).compile()
    found = {one.kind: (one.times, one.size) for one in collectives(program.as_text())}
    assert found == {"all-gather": (2 * layers, 8 * 8 * 4), "reduce-scatter": (layers, 8 * 8)}
