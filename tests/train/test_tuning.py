"""Training a part of a model: only that part changes, and no mesh, accumulation or kill changes how."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from models.checkpoints.save import save_hf
from models.checkpoints.tuned import load_tuned
from models.config import Attention, Embedding
from models.lora import LoRA
from models.quantize import NF4
from models.sharding import MeshConfig, abstract_mesh, batch_sharding, make_mesh
from models.transformer import CausalLM
from models.tuning import Tuning, dotted_paths, tuned
from tests.train.tiny import losses, random_batch, run_config, tiny_model
from train.config import load_config, to_json
from train.loss import next_token_objective
from train.moments import compress, expand
from train.optimizer import AdamW, Muon, WarmupCosine, make_optimizer, make_schedule
from train.parameters import bits_a_weight, parameter_counts, trainable_line
from train.plan import number_of_devices, plan
from train.state import abstract_state, create_state, describe_model, make_params, new_state, shardings_of
from train.step import TrainConfig, make_train_step

ROOT = Path(__file__).parents[2]
ADAPTERS = Tuning(lora=LoRA(targets="all-linear", dropout=0.2))
QUANTISED = Tuning(lora=LoRA(dropout=0.2), quantize=NF4(block=16))


class Tuner:
    """A step of a tuned tiny model on a mesh."""

    def __init__(self, tuning, mesh=None, optimizer=None, **train):
        self.mesh = make_mesh(mesh or MeshConfig())
        config = TrainConfig(**({"num_steps": 5} | train))
        with jax.set_mesh(self.mesh):
            self.graphdef, axes, placements = describe_model(tiny_model(), self.mesh, tuning)
            tx = make_optimizer(optimizer or AdamW(learning_rate=1e-2), axes)

            def create():
                return new_state(make_params(tiny_model(), 0, tuning), tx, with_ema=False, axes=axes)

            self.abstract = abstract_state(create, placements, self.mesh)
            self.state = create_state(create, self.abstract)
        self.step = make_train_step(
            next_token_objective,
            self.graphdef,
            tx,
            make_schedule(WarmupCosine(warmup_steps=1), config.num_steps),
            config,
            shardings=shardings_of(self.abstract),
            batch_sharding=batch_sharding(self.mesh),
            dropout=tuning.lora is not None and tuning.lora.dropout > 0,
        )

    def losses(self, steps=3):
        found = []
        with jax.set_mesh(self.mesh):
            for seed in range(steps):
                batch = {k: jax.device_put(v, batch_sharding(self.mesh)) for k, v in random_batch(seed).items()}
                self.state, metrics = self.step(self.state, batch)
                found.append(float(metrics["loss"]))
        return found


@pytest.fixture(scope="module")
def tuner():
    """Three steps with adapters on one device: the state before, the tuner after, and the losses."""
    made = Tuner(ADAPTERS)
    before = jax.tree.map(np.array, (made.state.params, made.state.frozen))
    return before, made, made.losses()


def test_only_adapters_change_and_only_they_have_optimizer_state(tuner):
    (params, frozen), made, _ = tuner
    assert all("lora" in path for path in dotted_paths(params)) and params
    assert not any("lora" in path for path in dotted_paths(frozen)) and frozen
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, frozen, jax.tree.map(np.array, made.state.frozen))))
    now = jax.tree.map(np.array, made.state.params)
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, params, now)))
    moments = sum(leaf.size for leaf in jax.tree.leaves(made.state.opt_state) if leaf.ndim)
    trained, total = parameter_counts(made.abstract)
    assert moments == 2 * trained == 2 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total == trained + sum(leaf.size for leaf in jax.tree.leaves(frozen))
    assert trainable_line(made.abstract).startswith(f"trainable params: {trained:,} || all params: {total:,}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"grad_accum_steps": 2}, {"mesh": MeshConfig(data=2, fsdp=2, tensor=2)}, {"mesh": MeshConfig(fsdp=8)}],
    ids=["accumulated", "2x2x2", "fsdp=8"],
)
def test_with_dropout_neither_mesh_nor_accumulation_changes_the_loss(tuner, changes):
    np.testing.assert_allclose(Tuner(ADAPTERS, **changes).losses(), tuner[2], rtol=1e-5)


def test_dropout_follows_the_seed_alone(tuner):
    assert Tuner(ADAPTERS, seed=1).losses() != tuner[2]


@pytest.mark.slow
def test_a_quantised_base_is_trained_over_on_a_mesh_as_on_one_device():
    one = Tuner(QUANTISED)
    expected = one.losses()
    assert 4.1 < bits_a_weight(one.abstract) < 8  # tiny matrices: their scales weigh more than 4.127 allows
    sharded = Tuner(QUANTISED, MeshConfig(data=2, fsdp=2, tensor=2))
    packed = sharded.state.frozen["layers"]["mlp"]["up"]["parts"]["packed"]
    assert packed.dtype == jnp.uint8 and packed.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    np.testing.assert_allclose(sharded.losses(), expected, rtol=1e-5)
    after = sharded.state.frozen["layers"]["mlp"]["up"]["parts"]["packed"]
    assert after.sharding.spec == packed.sharding.spec


def test_freezing_by_pattern_leaves_the_rest_to_train():
    made = Tuner(Tuning(freeze=("embedding", "layers.mlp")))
    before = jax.tree.map(np.array, made.state.frozen)
    assert set(dotted_paths(before)) == {"embedding", *(f"layers.mlp.{name}.kernel" for name in ("gate", "up", "down"))}
    first, *_, last = made.losses()
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, jax.tree.map(np.array, made.state.frozen))))
    assert "kernel" in made.state.params["layers"]["attention"]["q"] and np.isfinite(last) and first != last


def test_lora_plus_is_of_every_projection_the_output_too():
    tuning = Tuning(lora=LoRA(targets=("q", "embedding", "lm_head"), rank=4))
    _, axes, _ = describe_model(tiny_model(), abstract_mesh(MeshConfig(), 1), tuning)
    ones = jax.tree.map(lambda names: jnp.ones([1] * len(names)), axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    tx = make_optimizer(AdamW(learning_rate=1.0, weight_decay=0.0, lora_b_ratio=16.0), axes)
    updates, _ = tx.update(ones, tx.init(ones), ones)
    found = {
        ".".join(str(key.key) for key in path): -value.item() for path, value in jax.tree.leaves_with_path(updates)
    }
    faster = {name for name, value in found.items() if value > 15}
    assert faster == {"layers.attention.q.lora.b", "lm_head_lora.b"} and len(found) == 6
    with pytest.raises(ValueError, match=r"lora_b_ratio=16.0 finds no adapter of a projection"):
        make_optimizer(
            AdamW(lora_b_ratio=16.0), describe_model(tiny_model(), abstract_mesh(MeshConfig(), 1), Tuning())[1]
        )


@pytest.mark.slow
def test_lora_plus_moves_b_faster_by_its_ratio():
    plain, faster = (Tuner(ADAPTERS, optimizer=AdamW(lora_b_ratio=ratio, weight_decay=0.0)) for ratio in (1.0, 16.0))
    for made in (plain, faster):
        made.losses(steps=1)
    ours, theirs = (made.state.params["layers"]["attention"]["q"]["lora"] for made in (faster, plain))
    np.testing.assert_allclose(ours["b"], 16 * np.array(theirs["b"]), rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(ours["a"], theirs["a"])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [AdamW(learning_rate=1e-2, moment_dtype="int8"), Muon(moment_dtype="int8")])
def test_moments_in_8_bits_take_a_quarter_and_train_as_well(optimizer, monkeypatch):
    monkeypatch.setattr("train.moments.SMALLEST", 256)
    import dataclasses

    whole = Tuner(Tuning(), optimizer=dataclasses.replace(optimizer, moment_dtype="float32"))
    small = Tuner(Tuning(), MeshConfig(fsdp=2, tensor=2), optimizer=optimizer)
    size = lambda made: sum(leaf.nbytes for leaf in jax.tree.leaves(made.state.opt_state))  # noqa: E731
    assert size(small) < 0.4 * size(whole)  # tiny matrices have short blocks; 256 would give 0.254
    codes = [leaf for leaf in jax.tree.leaves(small.state.opt_state) if leaf.dtype == jnp.uint8 and leaf.ndim == 3]
    assert codes and all("tensor" in jax.tree.leaves(tuple(leaf.sharding.spec)) for leaf in codes)
    np.testing.assert_allclose(small.losses(steps=5), whole.losses(steps=5), rtol=0.02)


def test_moments_of_a_table_of_any_length_take_a_quarter():
    for shape in ((32_003, 64), (4099, 512), (2, 576, 8), (2, 8, 576), (50_257, 768)):
        codes, scales = jax.eval_shape(lambda shape=shape: compress(jnp.zeros(shape), signed=True))
        assert codes.shape == shape and 4 * scales.size < 0.07 * codes.size, shape


@pytest.mark.parametrize("signed", [True, False])
def test_a_moment_comes_back_within_the_steps_of_the_map(signed):
    x = np.random.default_rng(0).normal(size=(3, 512, 24)).astype(np.float32) * np.logspace(-6, 0, 24, dtype=np.float32)
    x = x if signed else np.square(x)
    codes, scales = compress(jnp.asarray(x), signed=signed)
    assert codes.shape == x.shape and codes.dtype == jnp.uint8 and scales.shape == (3, 2, 24)
    back = np.asarray(expand(codes, scales, signed=signed))
    assert np.abs(back - x).max() / np.abs(x).max() < 0.02
    assert np.linalg.norm(back - x) / np.linalg.norm(x) < 0.02


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("llama2_7b_lora", ["trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622"]),
        ("llama3_8b_qlora", ["llama3_8b_qlora: 8,030,261,248 parameters", "rest in 4.127 bits a weight"]),
    ],
)
def test_the_plan_of_a_tuned_llama_counts_weights_and_not_bytes(name, lines):
    config = load_config(f"configs/{name}.py")
    told = plan(config, abstract_mesh(config.mesh, number_of_devices(config)))
    assert all(line in told for line in lines)


def llama_model(**changes):
    parts = {"attention": Attention(), "embedding": Embedding(tied=True)}
    return tiny_model(**(parts | changes))


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A tiny Llama as a Hugging Face folder: what tuning starts from."""
    folder = tmp_path_factory.mktemp("base")
    save_hf(CausalLM(llama_model(vocab_size=600), rngs=nnx.Rngs(3)), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(lora=LoRA(targets=("q", "embedding", "lm_head"), dora=True)),
        Tuning(lora=LoRA(targets="all-linear", init="loftq"), quantize=NF4(block=16)),
        Tuning(lora=LoRA(init="pissa"), quantize=NF4(block=16, double_quant=False)),
    ],
    ids=["tables and DoRA", "LoftQ", "PiSSA, quantised"],
)
def test_a_base_that_is_read_part_by_part_is_the_one_that_is_tuned_whole(base_folder, tuning):
    config = llama_model(vocab_size=600)
    mesh = make_mesh(MeshConfig(fsdp=2))
    params, fingerprint = load_tuned(base_folder, config, mesh, tuning, seed=5)
    _, same = load_tuned(base_folder, config, make_mesh(MeshConfig(tensor=2)), tuning, seed=5)
    assert fingerprint == same
    graph, state = nnx.split(CausalLM(config, rngs=nnx.Rngs(3)))
    make = jax.jit(lambda state: nnx.to_pure_dict(nnx.state(tuned(nnx.merge(graph, state), tuning, 5))))
    whole = make(state)
    assert dotted_paths(whole) == dotted_paths(params)
    for path, ours in zip(dotted_paths(whole), zip(jax.tree.leaves(params), jax.tree.leaves(whole))):
        if ours[0].dtype == jnp.uint8:
            assert (np.array(ours[0]) == np.array(ours[1])).mean() > 0.98, path
        else:
            np.testing.assert_allclose(*ours, atol=1e-3, err_msg=path)


def tuning_config(folder: Path, base: str, quantised: bool = False, **changes):
    parts = {
        "model": llama_model(vocab_size=600),
        "init_from": base,
        "optimizer": AdamW(learning_rate=1e-2),
        "lora": LoRA(dropout=0.1),
        "quantize": NF4(block=16) if quantised else None,
    }
    return run_config(folder, **(parts | changes))


def test_a_run_with_adapters_is_no_start_for_another(tmp_path):
    """Its adapters would go on under new settings where they fit, and be lost where they do not."""
    config = tuning_config(tmp_path, str(tmp_path / "base"))
    (tmp_path / "first" / "checkpoints").mkdir(parents=True)
    (tmp_path / "first" / "config.json").write_text(json.dumps(to_json(config)))
    for tuning in (config.tuning, Tuning()):
        with pytest.raises(ValueError, match=r"first is a run with adapters, .*: merge them .* and start from DIR"):
            load_tuned(tmp_path / "first", config.model, make_mesh(MeshConfig()), tuning, seed=0)


def checkpoint_items(run_dir: Path) -> set[str]:
    newest = max((path for path in (run_dir / "checkpoints").iterdir()), key=lambda path: int(path.name))
    return {path.name for path in newest.iterdir() if path.is_dir()}


@pytest.mark.slow
def test_the_checkpoint_of_a_run_with_adapters_holds_no_base_unless_asked_and_knows_which_it_was(
    corpus, base_folder, tmp_path, own_mesh
):
    from train.checkpoint import CheckpointConfig
    from train.loop import train

    config = tuning_config(corpus, str(base_folder), run_dir=str(tmp_path / "lean"))
    assert train(config, corpus / "dataset") == 0
    assert checkpoint_items(tmp_path / "lean") >= {"lora", "opt", "meta", "data", "ema"}
    assert "params" not in checkpoint_items(tmp_path / "lean")

    other = tmp_path / "other"
    save_hf(CausalLM(llama_model(vocab_size=600), rngs=nnx.Rngs(4)), other)
    moved = tuning_config(corpus, str(other), run_dir=str(tmp_path / "lean"))
    with pytest.raises(ValueError, match="it has base="):
        train(moved, corpus / "dataset")

    whole = tuning_config(
        corpus,
        str(base_folder),
        run_dir=str(tmp_path / "whole"),
        checkpoint=CheckpointConfig(every_steps=12, base_weights=True),
    )
    assert train(whole, corpus / "dataset") == 0
    assert checkpoint_items(tmp_path / "whole") >= {"lora", "params"}
    assert losses(tmp_path / "whole") == losses(tmp_path / "lean")


@pytest.mark.slow
@pytest.mark.parametrize("quantised", [False, True], ids=["LoRA", "QLoRA"])
def test_kill_9_then_the_same_command_gives_the_same_losses_bit_by_bit(corpus, base_folder, tmp_path, quantised):
    lines = ["from pathlib import Path", "from tests.train.test_tuning import tuning_config", "def get_config():"]
    lines.append(f"    return tuning_config(Path({str(corpus)!r}), {str(base_folder)!r}, {quantised})")
    (tmp_path / "tiny_config.py").write_text("\n".join(lines))

    def start(name):
        command = [sys.executable, "-m", "train.main", "--config", "tiny_config.py", f"run_dir={name}"]
        command += ["train.num_steps=40", "checkpoint.every_steps=7"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def bits(name):
        return {step: float(value).hex() for step, value in losses(tmp_path / name).items()}

    whole = start("whole")
    assert whole.wait() == 0, whole.stdout.read()
    killed = start("killed")
    path = tmp_path / "killed" / "metrics.jsonl"
    while killed.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 20):
        time.sleep(0.002)
    assert killed.poll() is None, killed.stdout.read()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(losses(tmp_path / "killed")) < 40
    resumed = start("killed")
    assert resumed.wait() == 0, resumed.stdout.read()
    assert bits("killed") == bits("whole") and len(bits("whole")) == 40
    last = lambda name: json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])  # noqa: E731
    assert last("killed")["heldout/bits_per_byte/prose"] == last("whole")["heldout/bits_per_byte/prose"]
