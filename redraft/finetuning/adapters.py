"""Low-rank adapters beside a denoiser's linear layers, by ``peft``: put in, merged into plain weights, stored, read.

LoRA: Hu et al. 2021, arXiv 2106.09685; on quantised weights, QLoRA: Dettmers et al. 2023, arXiv 2305.14314. peft is
imported when adapters are asked for (``pip install 'redraft[finetune]'``).
"""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redraft.errors import unknown
from redraft.recipes.finetune import LoraConfig

HEADS = ("lm_head", "head")
WEIGHTS = "adapter_model.safetensors"


def library() -> ModuleType:
    """peft. Errors: ``ValueError`` saying how to install it."""
    try:
        import peft
    except ImportError:
        raise ValueError("adapters need peft: pip install 'redraft[finetune]', or leave lora.rank out") from None
    return peft


def targets(denoiser: nn.Module, names: str = "all") -> list[str]:
    """Whole names of the linear layers meant: ``all`` but the head, or those whose last names are listed.

    GPT-2's layers (``Conv1D``) are linear ones. Experts of a mixture kept as one tensor are not layers: of such models
    ``all`` is attention and what is dense. Errors: ``ValueError`` for a name that no linear layer has, with the
    nearest, and for a model without linear layers.
    """
    from transformers.pytorch_utils import Conv1D

    heads = _heads(denoiser)
    linear = [
        name
        for name, module in denoiser.named_modules()
        # a weight that is another's is read past the layer
        if isinstance(module, nn.Linear | Conv1D)
        and module not in heads
        and getattr(module, "weight", None) is not None
    ]
    if not linear:
        raise ValueError(f"adapters beside linear layers: {type(denoiser).__name__} has no linear layer but the head")
    if names == "all":
        return linear
    asked, known = [one.strip() for one in names.split(",")], {name.rpartition(".")[2] for name in linear}
    for one in asked:
        if one not in known:
            raise unknown("linear layer in lora.targets", one, sorted(known))
    return [name for name in linear if name.rpartition(".")[2] in asked]


def _heads(denoiser: nn.Module) -> set[nn.Module]:
    """What gives logits: the heads of our networks by name, of ``transformers``' as those say."""
    found = {module for name, module in denoiser.named_modules() if name.rpartition(".")[2] in HEADS}
    for module in denoiser.modules():
        head = getattr(module, "get_output_embeddings", lambda: None)()
        found |= {head} if isinstance(head, nn.Module) else set()
    return found


def inject(denoiser: nn.Module, config: LoraConfig) -> None:
    """Put adapters into ``denoiser``, in place, float32 or finer; they say nothing at first, and only they are trained.

    Errors: ``ValueError`` for layers that it has not (``targets``).
    """
    assert config.rank is not None
    peft = library()
    chosen = peft.LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        target_modules=targets(denoiser, config.targets),
    )
    _put(chosen, denoiser)


def _put(config: Any, denoiser: nn.Module) -> None:
    with _quiet():
        library().inject_adapter_in_model(config, denoiser)
    for name, one in denoiser.named_parameters():
        if "lora_" in name:  # peft has them as coarse as what stands beside them
            one.data = one.data.to(torch.promote_types(one.dtype, torch.float32))


def reached(denoiser: nn.Module) -> list[str]:
    """Last names of the layers that have adapters."""
    return sorted({name.split(".lora_")[0].rpartition(".")[2] for name in denoiser.state_dict() if ".lora_" in name})


def merge(denoiser: nn.Module) -> None:
    """Add adapters to the weights beside which they stand, and take them out: the layers are plain ones again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, Any] = {name: one for name, one in denoiser.named_modules() if isinstance(one, BaseTunerLayer)}
    for name, layer in layers.items():
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(denoiser, "peft_config"):
        del denoiser.peft_config
    denoiser.requires_grad_(True)


def save(denoiser: nn.Module, folder: Path, base: str) -> None:
    """Store the adapters of ``denoiser`` in files as peft lays them out, saying which model they are beside.

    Layers have their names in redraft, not in the released model: ``attach`` puts them into one that redraft loads.
    """
    config: Any = next(iter(getattr(denoiser, "peft_config").values()))  # noqa: B009
    config.base_model_name_or_path = base
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: one.detach().cpu().contiguous() for name, one in _stored(denoiser).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def attach(denoiser: nn.Module, folder: str | Path) -> None:
    """Put the adapters stored in ``folder`` into the model that they were trained beside, in place.

    Errors: ``ValueError`` for a folder without adapters, and for adapters of another model.
    """
    folder, peft = Path(folder), library()
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder}: no {WEIGHTS} in it; pass the folder 'adapter' of a run of sft")
    config: Any = peft.LoraConfig.from_pretrained(str(folder))
    if strange := sorted(set(config.target_modules) - set(targets(denoiser))):
        raise ValueError(f"{folder}: adapters of {strange[0]}, which this model has not; pass the model they are of")
    _put(config, denoiser)
    wanted, found = _stored(denoiser), load_file(folder / WEIGHTS)
    for name in sorted(wanted.keys() | found.keys()):
        here, there = (None if one is None else tuple(one.shape) for one in (wanted.get(name), found.get(name)))
        if here != there:
            raise ValueError(f"{folder}: {name} has shape {there} there, and {here} beside this model")
    peft.set_peft_model_state_dict(denoiser, found)


def _stored(denoiser: nn.Module) -> dict[str, Tensor]:
    """Adapters by the names that they are stored by; peft is not to look for the base on the Hub."""
    return library().get_peft_model_state_dict(denoiser, save_embedding_layers=False)


@contextmanager
def _quiet() -> Generator[None]:
    """Without peft's remarks that quantised layers cannot be merged (theirs are, into weights read again), and that
    weights of ``Conv1D`` are stored inputs first, which it sees to.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(apply_tensor_subclass|fan_in_fan_out).*")
        yield


def count_trained(denoiser: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(one.numel() for one in denoiser.parameters() if one.requires_grad)
