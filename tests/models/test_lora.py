"""Adapters: nothing at first, merged as unmerged, each row its own, and a clear word where a pattern is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.config import Attention, Embedding, Execution, ModelConfig
from models.decode import DecodeConfig, Decoder, generate
from models.lora import LoRA, add_lora, merge_lora, without_lora
from models.quantize import NF4, Int8Weights, quantize_model, round_trip
from models.rows import RowContext, row_keys
from models.scoring import Scorer
from models.trainable import trainable_paths
from models.transformer import CausalLM, unstacked
from models.tuning import Tuning, dotted_paths, tuned

ROWS, LENGTH = 3, 10
SIZES = {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 48}


def config(**changes) -> ModelConfig:
    parts = {"vocab_size": 64, "dtype": "float32", "execution": Execution(scan_unroll=1)}
    return ModelConfig(**(SIZES | parts | changes))


def made(build):
    """What `build` makes, compiled as a whole: much faster than operation by operation."""
    graph = nnx.split(nnx.eval_shape(build))[0]
    return nnx.merge(graph, jax.jit(lambda: nnx.state(build()))())


def adapted(base, asked, seed=1):
    return made(lambda: add_lora(base, asked, rngs=nnx.Rngs(seed)))


@pytest.fixture(scope="module")
def base():
    return made(lambda: CausalLM(config(attention=Attention(qkv_bias=True)), rngs=nnx.Rngs(0)))


@jax.jit
def run_split(graph_state, rows):
    model = nnx.merge(*graph_state)
    inputs_BT = jnp.asarray(np.random.default_rng(0).integers(0, 64, (ROWS, LENGTH)))
    positions_BT = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    return model.logits(model(inputs_BT, jnp.ones_like(inputs_BT), positions_BT, rows=rows))


def run(model, rows=None):
    return np.asarray(run_split(nnx.split(model), rows))


def moved(model, seed=7, size=0.1):
    """The model with every adapter parameter somewhere else than where it began."""
    graph, state = nnx.split(model)
    key = jax.random.key(seed)

    def move(path, leaf):
        name = jax.tree_util.keystr(path)
        if "lora" not in name:
            return leaf
        return leaf + size * jax.random.normal(jax.random.fold_in(key, len(name)), leaf.shape)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(move, state))


def chosen(*ids):
    return RowContext(adapter_ids_B=jnp.asarray(ids, jnp.int32))


@pytest.mark.parametrize("targets", ["all-linear", ("q", "v", "embedding", "lm_head")])
def test_fresh_adapters_are_the_base_to_the_last_bit(base, targets):
    model = adapted(base, LoRA(targets=targets))
    assert np.array_equal(run(model), run(base))
    if targets == "all-linear":
        assert np.array_equal(run(unstacked(model)), run(unstacked(base)))


KINDS = {
    "rslora": LoRA(targets="all-linear", rslora=True, rank_pattern=(("v", 2),), alpha_pattern=(("attention.q", 5.0),)),
    "dora": LoRA(targets="all-linear", dora=True),
    "tables": LoRA(targets=("q", "embedding", "lm_head")),
    "tables with dora": LoRA(targets=("embedding", "lm_head"), dora=True),
    "one adapter on both uses of the table": LoRA(targets=("embedding",), tie_embedding=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_unmerged_and_another_function_than_the_base(base, kind):
    model = moved(adapted(base, KINDS[kind]), size=0.02 if "table" in kind else 0.1)
    merged = made(lambda: merge_lora(model))
    assert not [path for path in dotted_paths(nnx.state(merged)) if "lora" in path]
    assert np.max(np.abs(run(model) - run(base))) > 0.1
    np.testing.assert_allclose(run(merged), run(model), atol=1e-5)
    bare = jax.tree.leaves(nnx.state(without_lora(model)))
    assert all(map(np.array_equal, bare, jax.tree.leaves(nnx.state(base))))


def test_the_adapter_of_an_untied_output_merges_too():
    base = made(lambda: CausalLM(config(embedding=Embedding(tied=False)), rngs=nnx.Rngs(0)))
    model = moved(adapted(base, LoRA(targets=("lm_head",))))
    assert np.max(np.abs(run(model) - run(base))) > 0.1
    np.testing.assert_allclose(run(merge_lora(model)), run(model), atol=1e-5)
    for number in (1, -1):
        with pytest.raises(ValueError, match=rf"no adapter {number} to merge: they are 0 to 0"):
            merge_lora(model, number)


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
def test_every_row_has_the_adapter_that_it_asks_for(base, dora):
    asked = LoRA(targets=("q", "down", "embedding", "lm_head"), names=("formal", "short"), dora=dora)
    model = moved(adapted(base, asked))
    mixed = run(model, chosen(1, -1, 0))
    np.testing.assert_allclose(mixed[0], run(merge_lora(model, 1))[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], run(base)[1], atol=1e-5)
    np.testing.assert_allclose(mixed[2], run(merge_lora(model, 0))[2], atol=1e-5)
    np.testing.assert_allclose(run(model), run(merge_lora(model, 0)), atol=1e-5)
    assert np.max(np.abs(mixed[0] - run(merge_lora(model, 0))[0])) > 0.1


def test_dropout_is_drawn_for_each_row_from_its_own_key_and_off_without_one(base):
    model = moved(adapted(base, LoRA(dropout=0.5)))
    keys = row_keys(seed=3, step=jnp.int32(5), rows=ROWS)
    first = run(model, RowContext(dropout_keys_B2=keys))
    assert np.max(np.abs(first - run(model))) > 0.01
    assert np.array_equal(first, run(model, RowContext(dropout_keys_B2=keys)))
    np.testing.assert_allclose(  # a row's draws do not depend on its place among the others
        run(model, RowContext(dropout_keys_B2=keys[jnp.array([1, 1, 2])]))[1:], first[1:], atol=1e-6
    )
    other = run(model, RowContext(dropout_keys_B2=row_keys(seed=3, step=jnp.int32(6), rows=ROWS)))
    assert np.max(np.abs(first - other)) > 0.01
    np.testing.assert_allclose(run(unstacked(model), RowContext(dropout_keys_B2=keys)), first, atol=1e-5)


def test_the_rate_of_dropout_is_the_one_asked_for():
    from models.rows import dropped

    keys = row_keys(seed=0, step=jnp.int32(0), rows=4)
    ones = jnp.ones((4, 200, 100))
    out = np.asarray(dropped(ones, 0.05, RowContext(dropout_keys_B2=keys), 1))
    assert abs((out == 0).mean() - 0.05) < 0.003 and abs(out.mean() - 1.0) < 0.003
    assert np.array_equal(np.unique(out), np.unique([0.0, np.float32(1.0) / np.float32(0.95)]).astype(np.float32))


@pytest.mark.parametrize("init", ["pissa", "pissa_fast"])
def test_pissa_splits_the_kernel_into_its_largest_directions_and_the_rest(base, init):
    model = adapted(base, LoRA(targets=("q",), rank=4, init=init))
    np.testing.assert_allclose(run(model), run(base), atol=2e-5)
    rest = np.linalg.svd(np.asarray(model.layers.attention.q.kernel.get_value()), compute_uv=False)
    whole = np.linalg.svd(np.asarray(base.layers.attention.q.kernel.get_value()), compute_uv=False)
    np.testing.assert_allclose(rest[:, 0], whole[:, 4], rtol=1e-3 if init == "pissa" else 0.1)


@pytest.mark.slow
def test_loftq_is_nearer_to_the_float_model_than_quantisation_alone(base):
    form = NF4(block=16)
    asked = LoRA(targets="all-linear", rank=8, init="loftq")
    model = made(lambda: quantize_model(add_lora(base, asked, rngs=nnx.Rngs(1), round_trip=round_trip(form)), form))
    plain = np.abs(run(made(lambda: quantize_model(base, form))) - run(base)).mean()
    assert np.abs(run(model) - run(base)).mean() < 0.75 * plain


def test_what_is_trained():
    shapes = nnx.eval_shape(
        lambda: add_lora(
            CausalLM(config(attention=Attention(qkv_bias=True)), rngs=nnx.Rngs(0)), LoRA(), rngs=nnx.Rngs(1)
        )
    )
    paths = dotted_paths(nnx.state(shapes))
    adapters = {f"layers.attention.{name}.lora.{half}" for name in "qv" for half in "ab"}
    assert trainable_paths(paths, LoRA()) == adapters
    targets_only = {f"layers.attention.{name}.bias" for name in "qv"}
    assert trainable_paths(paths, LoRA(bias="lora_only")) == adapters | targets_only
    assert trainable_paths(paths, LoRA(bias="all")) == adapters | targets_only | {"layers.attention.k.bias"}
    norms = {"final_norm.scale", "layers.attention_norm.scale", "layers.mlp_norm.scale"}
    assert trainable_paths(paths, LoRA(also_train=(".*norm.*", "embedding"))) == adapters | norms | {"embedding"}
    plain = {path for path in paths if "lora" not in path}
    assert trainable_paths(plain, freeze=("layers.mlp", "embedding")) == {
        path for path in plain if not path.startswith(("layers.mlp.", "embedding"))
    }


def refused(*parts):
    return pytest.raises(ValueError, match=".*".join(parts))


def test_what_does_not_fit_is_refused_in_one_line(base):
    add = lambda round_trip=None, **changes: add_lora(  # noqa: E731
        base, LoRA(**changes), rngs=nnx.Rngs(1), round_trip=round_trip
    )
    with refused("'qq' matches nothing", "layers.attention.q"):
        add(targets=("q", "qq"))
    with refused("no regular expression: missing"):
        add(targets=("q(",))
    with refused("rank_pattern: 'gate' matches nothing"):
        add(rank_pattern=(("gate", 4),))
    with refused("lora.rank=17 is above a side of layers.attention.k", "32 x 16", "at most 16"):
        add(targets=("k",), rank=17)
    with refused("quantisation: set quantize=NF4"):
        add(init="loftq")
    with refused("goes with one adapter, not 2"):
        add(init="pissa", names=("a", "b"))
    with refused("needs 'embedding'"):
        add(tie_embedding=True)
    with refused("freeze: 'mpl' matches nothing", "layers.mlp"):
        trainable_paths(["layers.mlp.up.kernel"], freeze=("mpl",))
    with refused("needs 'embedding' and no 'lm_head'"):  # the adapter of the output would learn nothing
        add(targets=(".*",), rank=4, tie_embedding=True)
    with refused("block=64 does not divide the input side of layers"):
        quantize_model(base, NF4())
    with refused("block=10 does not divide the input side of this matrix, 32"):
        add(init="loftq", round_trip=round_trip(NF4(block=10)))
    with refused("block must be at least 1, or None, not -4"):
        Int8Weights(block=-4)
    with refused("alpha=0.0.*each must be above 0"):
        LoRA(alpha=0.0)
    with refused("targets is empty"):
        LoRA(targets=())
    with refused("other than 'base'"):
        LoRA(names=("base",))
    paths = ["layers.mlp.up.parts.packed", "layers.attention.q.kernel", "layers.attention.q.lora.a"]
    with refused("also_train: 'up' is layers.mlp.up, which is quantised"):
        trainable_paths(paths, LoRA(also_train=("up",)))
    with refused("bias='all' finds no bias in this model"):
        trainable_paths(paths, LoRA(bias="all"))
    assert trainable_paths(paths, LoRA(also_train=(".*",))) == set(paths[1:])


def test_dora_over_quantised_weights_begins_as_they_are(base):
    """Its lengths are those of the matrix that rests, as PEFT's are, whichever of the two comes first."""
    form, dora = NF4(block=16), LoRA(targets="all-linear", dora=True, dropout=0.0)
    fresh = made(lambda: tuned(base, Tuning(lora=dora, quantize=form), 1))
    np.testing.assert_allclose(run(fresh), run(fresh, chosen(-1, -1, -1)), atol=1e-5)
    loaded = made(lambda: add_lora(quantize_model(base, form), dora, rngs=nnx.Rngs(1)))
    np.testing.assert_allclose(run(fresh), run(loaded), atol=1e-5)


@pytest.mark.slow
def test_generating_and_scoring_use_adapters_and_quantised_weights_as_training_does(base):
    asked = LoRA(targets=("q", "down", "embedding", "lm_head"))
    model = moved(made(lambda: add_lora(quantize_model(base, NF4(block=16)), asked, rngs=nnx.Rngs(1))), size=0.3)
    merged = made(lambda: merge_lora(model))
    prompts, settings = [[1, 5, 7], [1, 9]], DecodeConfig(max_new_tokens=8)
    ours = [drawn.ids for drawn in generate(Decoder(model), prompts, settings)]
    assert ours == [drawn.ids for drawn in generate(Decoder(merged), prompts, settings)]
    plain = [drawn.ids for drawn in generate(Decoder(without_lora(model)), prompts, settings)]
    mixed = [drawn.ids for drawn in generate(Decoder(model), prompts, settings, adapters=[-1, 0])]
    assert plain != ours and mixed == [plain[0], ours[1]]
    texts = [[1, 4, 9, 16, 25, 36], [1, 2, 3, 5, 8, 13, 21]]
    np.testing.assert_allclose(Scorer(model).score_ids(texts)[0], Scorer(merged).score_ids(texts)[0], rtol=1e-5)
