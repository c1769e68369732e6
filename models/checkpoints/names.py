"""Which tensor of a checkpoint each parameter is, and how it is laid out there. Literal tables, one a naming scheme.

Keys are paths of `CausalLM` parameters; `{i}` stands for the layer. Layers differ in nothing but their number, so one
line stands for all. Torch's Linear stores [out, in] and ours [in, out]; GPT-2's Conv1D stores [in, out] and keeps q, k
and v in one tensor; GGUF of the Llama architecture interleaves the two halves that the rotation pairs.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.config import ModelConfig


@dataclass(frozen=True)
class Rule:
    """One tensor of a checkpoint, as seen from our parameter.

    transpose: the checkpoint stores [out, in].
    part: (index, count): our parameter is that piece of `count` equal ones along the tensor's output dim.
    interleaved: rows of each head come as pairs (0, H/2), (1, H/2 + 1), ...; "q" or "kv" says how many heads.
    plus: what the checkpoint's values exceed ours by (GGUF stores Gemma's 1 + w).
    """

    name: str
    transpose: bool = False
    part: tuple[int, int] | None = None
    interleaved: Literal["q", "kv"] | None = None
    plus: float = 0.0

    @property
    def stacked(self) -> bool:
        """Whether the checkpoint has one such tensor for every layer."""
        return "{i}" in self.name

    def ours(self, theirs: np.ndarray, config: ModelConfig) -> np.ndarray:
        """The parameter of one layer out of the checkpoint's tensor: a view wherever numpy can make one."""
        if self.interleaved is not None:
            heads = config.num_heads if self.interleaved == "q" else config.num_kv_heads
            paired = theirs.reshape(heads, config.head_dim // 2, 2, *theirs.shape[1:])
            theirs = paired.swapaxes(1, 2).reshape(theirs.shape)
        if self.transpose:
            theirs = theirs.T
        if self.part is not None:
            width = theirs.shape[-1] // self.part[1]
            theirs = theirs[..., self.part[0] * width : (self.part[0] + 1) * width]
        return theirs - np.asarray(self.plus, theirs.dtype) if self.plus else theirs

    def theirs(self, ours: list[np.ndarray], config: ModelConfig) -> np.ndarray:
        """The checkpoint's tensor out of our parameter; out of all its parts, in order, where it has several."""
        tensor = ours[0] if len(ours) == 1 else np.concatenate(ours, axis=-1)
        if self.transpose:
            tensor = tensor.T
        if self.interleaved is not None:
            heads = config.num_heads if self.interleaved == "q" else config.num_kv_heads
            halves = tensor.reshape(heads, 2, config.head_dim // 2, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        return tensor + np.asarray(self.plus, tensor.dtype) if self.plus else tensor

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the checkpoint's tensor must have for one layer of our parameter."""
        shape = tuple(ours) if self.part is None else (*ours[:-1], ours[-1] * self.part[1])
        return tuple(reversed(shape)) if self.transpose else shape


def _linear(name: str, **kwargs) -> Rule:
    return Rule(name, transpose=True, **kwargs)


LLAMA: Mapping[str, Rule] = {
    "embedding": Rule("model.embed_tokens.weight"),
    "final_norm.scale": Rule("model.norm.weight"),
    "lm_head.kernel": _linear("lm_head.weight"),
    "layers.attention_norm.scale": Rule("model.layers.{i}.input_layernorm.weight"),
    "layers.attention.q.kernel": _linear("model.layers.{i}.self_attn.q_proj.weight"),
    "layers.attention.k.kernel": _linear("model.layers.{i}.self_attn.k_proj.weight"),
    "layers.attention.v.kernel": _linear("model.layers.{i}.self_attn.v_proj.weight"),
    "layers.attention.out.kernel": _linear("model.layers.{i}.self_attn.o_proj.weight"),
    "layers.attention.q.bias": Rule("model.layers.{i}.self_attn.q_proj.bias"),
    "layers.attention.k.bias": Rule("model.layers.{i}.self_attn.k_proj.bias"),
    "layers.attention.v.bias": Rule("model.layers.{i}.self_attn.v_proj.bias"),
    "layers.attention.out.bias": Rule("model.layers.{i}.self_attn.o_proj.bias"),
    "layers.attention.q_norm.scale": Rule("model.layers.{i}.self_attn.q_norm.weight"),
    "layers.attention.k_norm.scale": Rule("model.layers.{i}.self_attn.k_norm.weight"),
    "layers.mlp_norm.scale": Rule("model.layers.{i}.post_attention_layernorm.weight"),
    "layers.mlp.gate.kernel": _linear("model.layers.{i}.mlp.gate_proj.weight"),
    "layers.mlp.up.kernel": _linear("model.layers.{i}.mlp.up_proj.weight"),
    "layers.mlp.down.kernel": _linear("model.layers.{i}.mlp.down_proj.weight"),
    "layers.mlp.gate.bias": Rule("model.layers.{i}.mlp.gate_proj.bias"),
    "layers.mlp.up.bias": Rule("model.layers.{i}.mlp.up_proj.bias"),
    "layers.mlp.down.bias": Rule("model.layers.{i}.mlp.down_proj.bias"),
}

GEMMA_SANDWICH: Mapping[str, Rule] = {  # Gemma 2 and 3: `post_attention_layernorm` is another norm than Llama's
    **LLAMA,
    "layers.attention_out_norm.scale": Rule("model.layers.{i}.post_attention_layernorm.weight"),
    "layers.mlp_norm.scale": Rule("model.layers.{i}.pre_feedforward_layernorm.weight"),
    "layers.mlp_out_norm.scale": Rule("model.layers.{i}.post_feedforward_layernorm.weight"),
}

GPT2: Mapping[str, Rule] = {
    "embedding": Rule("transformer.wte.weight"),
    "position_embedding": Rule("transformer.wpe.weight"),
    "final_norm.scale": Rule("transformer.ln_f.weight"),
    "final_norm.bias": Rule("transformer.ln_f.bias"),
    "lm_head.kernel": _linear("lm_head.weight"),
    "layers.attention_norm.scale": Rule("transformer.h.{i}.ln_1.weight"),
    "layers.attention_norm.bias": Rule("transformer.h.{i}.ln_1.bias"),
    "layers.attention.q.kernel": Rule("transformer.h.{i}.attn.c_attn.weight", part=(0, 3)),
    "layers.attention.k.kernel": Rule("transformer.h.{i}.attn.c_attn.weight", part=(1, 3)),
    "layers.attention.v.kernel": Rule("transformer.h.{i}.attn.c_attn.weight", part=(2, 3)),
    "layers.attention.q.bias": Rule("transformer.h.{i}.attn.c_attn.bias", part=(0, 3)),
    "layers.attention.k.bias": Rule("transformer.h.{i}.attn.c_attn.bias", part=(1, 3)),
    "layers.attention.v.bias": Rule("transformer.h.{i}.attn.c_attn.bias", part=(2, 3)),
    "layers.attention.out.kernel": Rule("transformer.h.{i}.attn.c_proj.weight"),
    "layers.attention.out.bias": Rule("transformer.h.{i}.attn.c_proj.bias"),
    "layers.mlp_norm.scale": Rule("transformer.h.{i}.ln_2.weight"),
    "layers.mlp_norm.bias": Rule("transformer.h.{i}.ln_2.bias"),
    "layers.mlp.up.kernel": Rule("transformer.h.{i}.mlp.c_fc.weight"),
    "layers.mlp.up.bias": Rule("transformer.h.{i}.mlp.c_fc.bias"),
    "layers.mlp.down.kernel": Rule("transformer.h.{i}.mlp.c_proj.weight"),
    "layers.mlp.down.bias": Rule("transformer.h.{i}.mlp.c_proj.bias"),
}

GGUF_NEOX: Mapping[str, Rule] = {  # architectures whose rotation pairs halves, as ours does (qwen2, qwen3, gemma, ...)
    "embedding": Rule("token_embd.weight"),
    "final_norm.scale": Rule("output_norm.weight"),
    "lm_head.kernel": _linear("output.weight"),
    "layers.attention_norm.scale": Rule("blk.{i}.attn_norm.weight"),
    "layers.attention.q.kernel": _linear("blk.{i}.attn_q.weight"),
    "layers.attention.k.kernel": _linear("blk.{i}.attn_k.weight"),
    "layers.attention.v.kernel": _linear("blk.{i}.attn_v.weight"),
    "layers.attention.out.kernel": _linear("blk.{i}.attn_output.weight"),
    "layers.attention.q.bias": Rule("blk.{i}.attn_q.bias"),
    "layers.attention.k.bias": Rule("blk.{i}.attn_k.bias"),
    "layers.attention.v.bias": Rule("blk.{i}.attn_v.bias"),
    "layers.attention.out.bias": Rule("blk.{i}.attn_output.bias"),
    "layers.attention.q_norm.scale": Rule("blk.{i}.attn_q_norm.weight"),
    "layers.attention.k_norm.scale": Rule("blk.{i}.attn_k_norm.weight"),
    "layers.mlp_norm.scale": Rule("blk.{i}.ffn_norm.weight"),
    "layers.mlp.gate.kernel": _linear("blk.{i}.ffn_gate.weight"),
    "layers.mlp.up.kernel": _linear("blk.{i}.ffn_up.weight"),
    "layers.mlp.down.kernel": _linear("blk.{i}.ffn_down.weight"),
}

GGUF_GEMMA: Mapping[str, Rule] = {  # norms are stored as 1 + w; llama.cpp's own (1 + w) is plain multiplication
    **GGUF_NEOX,
    "layers.attention_out_norm.scale": Rule("blk.{i}.post_attention_norm.weight", plus=1.0),
    "layers.mlp_out_norm.scale": Rule("blk.{i}.post_ffw_norm.weight", plus=1.0),
    "final_norm.scale": Rule("output_norm.weight", plus=1.0),
    "layers.attention_norm.scale": Rule("blk.{i}.attn_norm.weight", plus=1.0),
    "layers.attention.q_norm.scale": Rule("blk.{i}.attn_q_norm.weight", plus=1.0),
    "layers.attention.k_norm.scale": Rule("blk.{i}.attn_k_norm.weight", plus=1.0),
    "layers.mlp_norm.scale": Rule("blk.{i}.ffn_norm.weight", plus=1.0),
}

GGUF_GPT2: Mapping[str, Rule] = {
    "embedding": Rule("token_embd.weight"),
    "position_embedding": Rule("position_embd.weight"),
    "final_norm.scale": Rule("output_norm.weight"),
    "final_norm.bias": Rule("output_norm.bias"),
    "lm_head.kernel": _linear("output.weight"),
    "layers.attention_norm.scale": Rule("blk.{i}.attn_norm.weight"),
    "layers.attention_norm.bias": Rule("blk.{i}.attn_norm.bias"),
    "layers.attention.q.kernel": _linear("blk.{i}.attn_qkv.weight", part=(0, 3)),
    "layers.attention.k.kernel": _linear("blk.{i}.attn_qkv.weight", part=(1, 3)),
    "layers.attention.v.kernel": _linear("blk.{i}.attn_qkv.weight", part=(2, 3)),
    "layers.attention.q.bias": Rule("blk.{i}.attn_qkv.bias", part=(0, 3)),
    "layers.attention.k.bias": Rule("blk.{i}.attn_qkv.bias", part=(1, 3)),
    "layers.attention.v.bias": Rule("blk.{i}.attn_qkv.bias", part=(2, 3)),
    "layers.attention.out.kernel": _linear("blk.{i}.attn_output.weight"),
    "layers.attention.out.bias": Rule("blk.{i}.attn_output.bias"),
    "layers.mlp_norm.scale": Rule("blk.{i}.ffn_norm.weight"),
    "layers.mlp_norm.bias": Rule("blk.{i}.ffn_norm.bias"),
    "layers.mlp.up.kernel": _linear("blk.{i}.ffn_up.weight"),
    "layers.mlp.up.bias": Rule("blk.{i}.ffn_up.bias"),
    "layers.mlp.down.kernel": _linear("blk.{i}.ffn_down.weight"),
    "layers.mlp.down.bias": Rule("blk.{i}.ffn_down.bias"),
}

GGUF_LLAMA: Mapping[str, Rule] = {
    **GGUF_NEOX,
    "layers.attention.q.kernel": _linear("blk.{i}.attn_q.weight", interleaved="q"),
    "layers.attention.k.kernel": _linear("blk.{i}.attn_k.weight", interleaved="kv"),
    "layers.attention.q.bias": Rule("blk.{i}.attn_q.bias", interleaved="q"),
    "layers.attention.k.bias": Rule("blk.{i}.attn_k.bias", interleaved="kv"),
}

HF_TABLES: Mapping[str, Mapping[str, Rule]] = {  # by model_type
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "smollm3": LLAMA,
    "gemma": LLAMA,
    "gemma2": GEMMA_SANDWICH,
    "gemma3_text": GEMMA_SANDWICH,
    "gpt2": GPT2,
}

BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|rope_freqs\.weight)$")  # constants, not parameters


def select(table: Mapping[str, Rule], paths: Iterable[str]) -> dict[str, Rule]:
    """The rules of these parameters; ValueError where the naming scheme has no word for one of them."""
    paths = list(paths)
    unknown = [path for path in paths if path not in table]
    if unknown:
        raise ValueError(f"this checkpoint format has no tensor for {', '.join(sorted(unknown)[:4])}")
    return {path: table[path] for path in paths}
