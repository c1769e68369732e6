"""Compiles the real step of many configs in one process, for machines that are not here.

test_compile.py runs it under the interpreters that have the compilers:

    python -m tests.train.compile_many '{"name": ["configs/pretrain_8b.py", "v6e:4x4", ["mesh.fsdp=16"]]}'
    python -m tests.train.compile_many --record NAME     the whole models that compiled_memory.json keeps, one at a time
"""

import json
import sys
import time
from pathlib import Path


def compiled(path: str, machine: str, overrides: list[str]) -> dict:
    """What the compiler says of one config on one machine, and what was predicted from shapes."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from models.attention import choose_kernel
    from models.sharding import make_mesh
    from train.chips import parse_topology
    from train.collectives import collectives, custom_calls
    from train.compile import compile_step, fitted, topology_devices, total_bytes
    from train.config import apply_overrides, load_config
    from train.cost import attention_shape
    from train.memory import memory_by_kind
    from train.plan import describe_run

    topology = parse_topology(machine)
    config = fitted(apply_overrides(load_config(path), overrides), topology)
    mesh = make_mesh(config.mesh, topology_devices(topology))
    begin = time.process_time()
    program, _ = compile_step(config, mesh)
    with jax.set_mesh(mesh):
        kernel = choose_kernel(attention_shape(config, config.model.pattern[0]), config.model.execution.kernel).name
    text = program.as_text()
    found = collectives(text, topology.domain)
    predicted = memory_by_kind(config, describe_run(config, mesh).state, dict(mesh.shape), topology.platform)
    return {
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "kernel": kernel,
        "custom_calls": custom_calls(text),
        "sent": {kind: sum(one.sent for one in found if one.kind == kind) for kind in {one.kind for one in found}},
        "network": sum(one.sent for one in found if one.network),
        "bytes": total_bytes(program.memory_analysis()),
        "predicted": sum(predicted.values()),
        "by_kind": predicted,
        "seconds": time.process_time() - begin,
    }


WHOLE = {
    "1B on v5e-16": ["configs/pretrain_1b.py", "v5e:4x4", []],
    "8B on v6e-256": ["configs/pretrain_8b.py", "v6e:16x16", []],
    "8B on 8 H100": ["configs/pretrain_8b.py", "h100:8", []],
}


def record(name: str) -> None:
    """Compiles one whole model and keeps what its compiler said."""
    import jax

    path = Path(__file__).parent / "compiled_memory.json"
    config, machine, overrides = WHOLE[name]
    one = compiled(config, machine, overrides)
    print(json.dumps(one))
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept[name] = {"config": config, "machine": machine, "overrides": overrides, "bytes": one["bytes"]}
    kept[name] |= {"jax": jax.__version__}
    path.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    """One JSON object a line, as each is compiled."""
    if sys.argv[1] == "--record":
        return record(sys.argv[2])
    for name, case in json.loads(sys.argv[1]).items():
        print(json.dumps({"name": name} | compiled(*case)), flush=True)


if __name__ == "__main__":
    main()
