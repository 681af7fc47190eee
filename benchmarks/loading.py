"""What loading a released checkpoint takes: peak memory against the size of what is loaded, and seconds.

    python benchmarks/loading.py [--parameters 200] [--threads 1] [--out benchmarks/results/loading/cpu.json]

Random LLaDA-shaped checkpoints (millions of ``--parameters``, an eighth of them in the embedding and as many in the
head), stored in float32 and in bfloat16, each loaded as stored, cast to the other, and quantised, in a process of its
own that has loaded a tiny one before. Measured is the resident set's peak (VmHWM, set back before) over the resident
set before loading, until every weight has been read once: private memory and pages of the mapped file alike. What is
loaded is the sum of bytes of all tensors that are kept. Linux only.
"""

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CASES: tuple[tuple[str, dict[str, str]], ...] = (
    ("float32", {}),
    ("bfloat16", {}),
    ("float32", {"dtype": "bfloat16"}),
    ("bfloat16", {"dtype": "float32"}),
    ("bfloat16", {"quantize": "int8"}),
    ("bfloat16", {"quantize": "nf4"}),
)
"""Stored in, and options of ``rd.load``."""
WORDS = 64


def config(millions: float, depth: int = 8) -> dict[str, Any]:
    """LLaDA's config.json with about so many million parameters, a quarter of them in embedding and head."""
    width = 128 * max(1, round((millions * 1e6 * 0.75 / depth / 12) ** 0.5 / 128))
    rows = int(millions * 1e6 / 8 / width)
    return {
        "model_type": "llada", "d_model": width, "n_heads": width // 64, "n_kv_heads": width // 64, "n_layers": depth,
        "mlp_hidden_size": width * 8 // 3, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_sequence_length": 64,
        "vocab_size": rows, "embedding_size": rows, "weight_tying": False, "mask_token_id": WORDS - 1,
    }  # fmt: skip


def write(folder: Path, millions: float, precision: str) -> int:
    """A random checkpoint with a tokenizer of letters; its number of parameters."""
    import tokenizers
    import torch
    from safetensors.torch import save_file

    from redraft.models.families import FAMILIES
    from redraft.models.families.base import Fields

    folder.mkdir(parents=True, exist_ok=True)
    stored = config(millions)
    (folder / "config.json").write_text(json.dumps(stored))
    words = {("[MASK]" if i == WORDS - 1 else chr(0x400 + i)): i for i in range(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
    backend.add_special_tokens([tokenizers.AddedToken("[MASK]", special=True)])
    backend.save(str(folder / "tokenizer.json"))
    with torch.device("meta"):
        model = FAMILIES["llada"].reads(Fields(folder / "config.json", stored)).build()
    state, draw = model.state_dict(), torch.Generator().manual_seed(0)
    dtype, tensors = getattr(torch, precision), dict[str, torch.Tensor]()
    for piece in FAMILIES["llada"].pieces(model):
        tensors[piece.stored] = torch.empty(state[piece.name].shape, dtype=dtype).uniform_(-0.03, 0.03, generator=draw)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())


def resident() -> dict[str, int]:
    """Bytes of this process by kind: VmHWM the peak, VmRSS now, RssAnon private, RssFile of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    wanted = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    return {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (one.partition(":") for one in lines) if name in wanted
    }


def leaves(tensor: Any) -> Iterator[Any]:
    """The plain tensors that one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from leaves(getattr(tensor, name))


def measure(tiny: str, folder: str, options: dict[str, str]) -> dict[str, float]:
    """Peak memory of loading ``folder`` over what this process had before, and what is kept of it."""
    import redraft as rd

    first = rd.load(tiny, **options)
    first.denoiser.requires_grad_(False)
    del first
    gc.collect()
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    started = time.perf_counter()
    lm = rd.load(folder, **options)
    seconds = time.perf_counter() - started
    kept = [leaf for tensor in lm.denoiser.state_dict().values() for leaf in leaves(tensor)]
    for leaf in kept:
        leaf.view(-1).max()  # a mapped file is in memory when it has been looked at
    after = resident()
    loaded = sum(leaf.numel() * leaf.itemsize for leaf in kept)
    return {
        "loaded_bytes": loaded,
        "peak_bytes": after["VmHWM"] - before,
        "ratio": (after["VmHWM"] - before) / loaded,
        "private_bytes_after": after["RssAnon"],
        "file_bytes_after": after["RssFile"],
        "seconds": seconds,
    }


def measured(folder: Path, millions: float, cases: tuple[tuple[str, dict[str, str]], ...], each: bool) -> list[Any]:
    """What ``measure`` finds of the cases, in a process for ``each`` or in one for all."""
    write(folder / "tiny", 0.3, "float32")
    runs = list[tuple[str, str, dict[str, str]]]()
    for precision, options in cases:
        if not (folder / precision).exists():
            write(folder / precision, millions, precision)
        runs.append((str(folder / "tiny"), str(folder / precision), options))
    found = list[Any]()
    for some in [[run] for run in runs] if each else [runs]:
        done = subprocess.run([sys.executable, __file__, "--measure", json.dumps(some)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found += json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=200, help="millions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loading/cpu.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps([measure(*one) for one in json.loads(options.measure)]))
        return
    from importlib.metadata import version

    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as name:
        found = measured(Path(name), options.parameters, CASES, each=True)
        with safe_open(Path(name) / "float32" / "model.safetensors", framework="pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    parameters = sum(torch.Size(shape).numel() for shape in shapes)
    cases = [{"stored": stored, **how, **one} for (stored, how), one in zip(CASES, found, strict=True)]
    for case in cases:
        print(json.dumps(case), file=sys.stderr)
    machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    machine |= {name: version(name) for name in ("torch", "safetensors", "torchao")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    written = {"parameters": parameters, "threads": options.threads, **machine, "cases": cases}
    options.out.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
