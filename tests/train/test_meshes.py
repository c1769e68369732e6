"""Every mesh trains alike: five float32 steps on eight devices give one device's losses."""

import functools

import jax
import numpy as np
import pytest

from models.sharding import MeshConfig
from tests.train.tiny import Trainer, random_batch
from train.optimizer import AdamW, Muon

MESHES = {
    "data=8": MeshConfig(data=8),
    "fsdp=8": MeshConfig(fsdp=8),
    "tensor=8": MeshConfig(tensor=8),
    "fsdp=4 tensor=2": MeshConfig(fsdp=4, tensor=2),
    "data=2 fsdp=2 tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp=2 context=2 tensor=2": MeshConfig(fsdp=2, context=2, tensor=2),
}


def five_losses(mesh, optimizer, **train):
    trainer = Trainer(mesh, optimizer=optimizer, **train)
    return [trainer.run(random_batch(step))["loss"] for step in range(5)]


@functools.cache
def on_one_device(optimizer):
    return five_losses(MeshConfig(), optimizer)


@pytest.mark.parametrize("name", MESHES)
def test_losses_equal_those_of_one_device(name):
    optimizer = AdamW(learning_rate=1e-2)
    np.testing.assert_allclose(five_losses(MESHES[name], optimizer), on_one_device(optimizer), rtol=1e-5)


@pytest.mark.slow
def test_muon_and_accumulation_and_vocabulary_chunks_on_a_mesh_of_all_axes():
    optimizer = Muon(learning_rate=5e-3, adam_learning_rate=5e-3)
    got = five_losses(MESHES["data=2 fsdp=2 tensor=2"], optimizer, grad_accum_steps=2, vocab_chunk=24)
    np.testing.assert_allclose(got, on_one_device(optimizer), rtol=1e-5)


def test_parameters_and_moments_are_made_in_parts():
    trainer = Trainer(MeshConfig(fsdp=4, tensor=2))
    for leaf in jax.tree.leaves(
        (trainer.state.params["layers"]["mlp"], trainer.state.opt_state[0].mu["layers"]["mlp"])
    ):
        assert leaf.addressable_shards[0].data.size == leaf.size // 8
