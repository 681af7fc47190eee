"""Fine-tuning from a model and a file of conversations to a model that answers: ``finetune``."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redraft.answering import speaks
from redraft.continuation import Network, still
from redraft.data import Packed
from redraft.data.chat import Chat, conversations
from redraft.data.messages import remembering
from redraft.data.tokenizers import CONFIG, TEMPLATE
from redraft.evaluation import likelihood
from redraft.finetuning import adapters
from redraft.finetuning.rows import Example, Padded, beside, examples, split, stacked
from redraft.lm import LM
from redraft.models.backbone import BackboneDenoiser
from redraft.objectives import Objective
from redraft.objectives.answers import check_answers, dream, llada
from redraft.processes.base import device_of
from redraft.randomness import Device, derive
from redraft.recipes.config import override
from redraft.recipes.finetune import AnswersConfig, Finetune
from redraft.runs import Run, finished, load
from redraft.sampling import sample
from redraft.training import Hooks, fit, parallel
from redraft.training.loop import Rows, starting_point

_ADAPTERS = 3
"""What a run's seed draws before its first step, beside what ``redraft.runs`` draws."""
OPTIONS = {"llada": ("eps", "block", "drop"), "dream": ("weighting", "cart", "block", "drop")}
"""The fields of ``AnswersConfig`` that each loss reads."""


def finetune(
    model: str | Path | None = None,
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Fine-tune a model on the conversations of a .jsonl file, and store it in ``out`` (``runs/sft``) as it came.

    ``model`` is a folder or a Hugging Face id, of masks with full or block attention. Only answers are noised and
    scored (``objectives.answers``). Other fields of ``recipes.finetune.Finetune`` change by dotted name, as in
    ``train``. With ``lora.rank`` only adapters are trained: they are merged at the end and stored in ``out/adapter``
    too. The likelihood is of held-out answers given their prompts, nats per token, as ``rows.stacked`` lays them out.

    Errors: ``ValueError`` for fields that do not go together, a model that cannot be fine-tuned, conversations that
    cannot be read or of which none has room, an ``out`` already in use without ``resume``.
    """
    config = configure(model, data, overrides)
    out = Path(out or Path("runs") / config.recipe)
    starting_point(out, resume)
    with parallel.world() as world:
        started = time.time()
        lm = _base(config, quantize=config.quantize)
        text = prepared(lm, config)
        dtype = next(lm.denoiser.parameters()).dtype
        add_adapters(lm.denoiser, config)
        hooks = Hooks(validate=_validation(config, text.held_out), sample=_sampling(text, lm))
        sizes: dict[str, Any] = {"trained": adapters.count_trained(lm.denoiser)}
        if config.lora.rank is not None:
            sizes["adapted"] = adapters.reached(lm.denoiser)
        ended = fit(config, lm.denoiser, lm.process, loss_of(config.loss), text.rows, hooks, out, resume)
        if not world.main:
            return Run(None, None, ended.stopped, ended.step, out)
        if ended.stopped:
            lm = _stopped(lm, config, ended.weights, dtype)
            return Run(lm, None, True, ended.step, out)
        lm = _merged(lm, config, ended.weights, out, dtype)
        _remember(lm, text.chat, config)
        measured = None
        if text.held_out is not None:
            measured = likelihood(
                lm.denoiser, lm.process, text.held_out, draws=config.eval.draws, seed=config.train.seed
            )
        finished(lm, out, config, measured, time.time() - started, **sizes, **text.told)
        return Run(lm, measured, False, ended.step, out)


def configure(
    model: str | Path | None = None, data: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Finetune:
    """The configuration ``finetune`` would run. Errors: ``ValueError``."""
    values = dict(overrides or {})
    for field, given in (("model", model), ("data.source", data)):
        if given is not None and values.setdefault(field, str(given)) != str(given):
            raise ValueError(f"{given} and {field}={values[field]!r} are the same field: pass one")
    config = override(Finetune(), values)
    if config.model is None:
        raise ValueError("sft starts from a model: pass --model, a run's folder, a saved model, or a Hugging Face id")
    if config.data.source is None:
        raise ValueError("sft learns from conversations: pass --data, a .jsonl file")
    if config.lora.rank is None and config.lora != type(config.lora)():
        raise ValueError("lora.* without adapters: set lora.rank, or leave them out")
    if config.quantize is not None and config.lora.rank is None:
        raise ValueError(f"quantize={config.quantize}: what is quantised is not trained; set lora.rank")
    if config.train.random_length:
        raise ValueError("train.random_length would cut answers off: it is for training on running text")
    if config.train.parallel == "fsdp":
        raise ValueError("train.parallel='fsdp': fine-tuning replicates the model; use ddp")
    if config.data.answers == "all" and config.loss.block is not None:
        raise ValueError("loss.block with data.answers=all: blocks are of one answer; use each or last")
    loss_of(config.loss)
    return config


def loss_of(config: AnswersConfig) -> Objective:
    """The loss of a configuration. Errors: ``ValueError`` for an option that it does not have."""
    chosen = {name: value for name, value in asdict(config).items() if name != "name" and value is not None}
    for name, value in chosen.items():
        if name not in OPTIONS[config.name]:
            raise ValueError(
                f"loss.{name}={value} with loss.name={config.name}, which has {', '.join(OPTIONS[config.name])}"
            )
    if "cart" in chosen and chosen.get("weighting", "cart") != "cart":
        raise ValueError(f"loss.cart={config.cart} with loss.weighting={config.weighting}: leave one out")
    objective: Objective = partial({"llada": llada, "dream": dream}[config.name], **chosen)
    return objective


@dataclass(frozen=True)
class Prepared:
    """Rows to train on, held-out ones, and what is told of them; ``first``: an example to show what is written."""

    chat: Chat
    rows: Rows
    held_out: Packed | None
    first: Example
    told: dict[str, int]


def prepared(lm: LM, config: Finetune) -> Prepared:
    """Conversations as the model is told them. Errors: ``ValueError`` where nothing is left, or nothing can pad."""
    data = config.data
    assert data.source is not None
    chat = speaks(lm.tokenizer, lm.about, data.template, data.turn)
    length = data.length or lm.context
    if length > lm.context:
        raise ValueError(f"data.length={length}: the model was trained on {lm.context} positions; set it to that")
    check_answers(lm.process, lm.denoiser.facts, config.loss.block)
    if lm.denoiser.facts.attention == "block":
        _check_blocks(config)
    if data.held_out and lm.denoiser.facts.time_conditioned:
        raise ValueError("data.held_out with a model that is told the time: its answers are not measured; set it to 0")
    pad_id = lm.eos_id
    if pad_id is None:
        raise ValueError("the model has no end of text to pad answers with: pass another tokenizer")
    train, held_out = split(conversations(data.source, data.limit), data.held_out)
    sides = [examples(chat, side, data.answers) for side in (train, held_out)]
    kept = [[one for one in side if len(one.ids) <= length] for side in sides]
    if not kept[0] or (held_out and len(kept[1]) < 2):
        raise ValueError(f"data.length={length}: no conversation is that short, or too few held out; raise it")
    learned = data.rows in ("batch", "fixed")
    fixed = length if data.rows == "fixed" else None
    rows = beside(kept[0], length, pad_id) if data.rows == "packed" else Padded(kept[0], pad_id, learned, fixed)
    told = {
        "answers": len(kept[0]),
        "left_out": sum(map(len, sides)) - sum(map(len, kept)),
        "answer_tokens": sum(int(one.answer.sum()) for one in kept[0]),
    }
    return Prepared(chat, rows, stacked(kept[1], pad_id, learned, fixed) if kept[1] else None, kept[0][0], told)


def _check_blocks(config: Finetune) -> None:
    """What a model of block attention cannot learn answers by. Errors: ``ValueError``."""
    if config.data.rows == "packed":
        raise ValueError("data.rows=packed for a block model, whose blocks count from a row's start: take batch")
    if config.loss.name == "dream" and config.loss.weighting in (None, "cart"):
        raise ValueError("loss.weighting=cart for a block model, which sees no context behind a block: time or flat")


def add_adapters(denoiser: nn.Module, config: Finetune) -> None:
    """Put into the denoiser what is to be trained of it, and have it compute as asked, in place."""
    still(denoiser)
    if config.checkpointing:
        if not isinstance(denoiser, BackboneDenoiser):
            raise ValueError(f"checkpointing with a {type(denoiser).__name__}, which cannot: leave it out")
        denoiser.checkpointing = True
    if config.lora.rank is None:
        denoiser.requires_grad_(True)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.train.seed, _ADAPTERS))
        adapters.inject(denoiser, config.lora)


def _base(config: Finetune, device: Device = None, quantize: str | None = None) -> LM:
    assert config.model is not None
    return load(config.model, device, quantize=quantize, tokenizer=config.tokenizer, family=config.family)


def _stopped(lm: LM, config: Finetune, weights: Mapping[str, Tensor], dtype: torch.dtype) -> LM:
    """The model as far as it is trained; nothing is stored, and of quantised weights adapters stay beside them."""
    lm.denoiser.load_state_dict(weights, strict=False)
    if config.quantize is not None:
        return _as_it_came(lm, None)
    if config.lora.rank is not None:
        adapters.merge(lm.denoiser)
    return _as_it_came(lm, dtype)


def _merged(lm: LM, config: Finetune, weights: Mapping[str, Tensor], out: Path, dtype: torch.dtype) -> LM:
    """The model with the weights to keep, plain ones in the precision that they came in; adapters are stored."""
    lm.denoiser.load_state_dict(weights, strict=False)
    if config.lora.rank is None:
        return _as_it_came(lm, dtype)
    assert config.model is not None
    adapters.save(lm.denoiser, out / "adapter", config.model)
    if config.quantize is not None:
        base = _base(config, device_of(lm.denoiser))  # adapters are merged into weights as they were before
        adapters.attach(base.denoiser, out / "adapter")
        lm = base
    adapters.merge(lm.denoiser)
    return _as_it_came(lm, dtype)


def _as_it_came(lm: LM, dtype: torch.dtype | None) -> LM:
    """``lm`` as ``load`` leaves it: to be asked, not trained, and in that precision."""
    if dtype is not None:
        lm.denoiser.to(dtype)
    if isinstance(lm.denoiser, BackboneDenoiser):
        lm.denoiser.checkpointing = False
    lm.denoiser.eval()
    return lm


def _remember(lm: LM, chat: Chat, config: Finetune) -> None:
    """Have the model told conversations from now on as it was taught them, where that is not its own way."""
    if config.data.template is None and config.data.turn is None:
        return
    lm.tokenizer.teach(chat.template, chat.turn)
    files: Mapping[str, str] = lm.about.get("files", {})
    if CONFIG in files:  # they are stored as they came, but for this
        told = {CONFIG: remembering(files[CONFIG], lm.tokenizer.taught), TEMPLATE: chat.template}
        lm.about = {**lm.about, "files": {**files, **told}}


def _validation(config: Finetune, held_out: Packed | None) -> Callable[[int, nn.Module], dict[str, float]] | None:
    if held_out is None:
        return None

    def validate(_step: int, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Network)
        found = likelihood(
            model,
            model.process,
            held_out,
            draws=1,
            rows=config.eval.rows,
            seed=config.train.seed,
            device=device_of(model),
        )
        return {"held_out": found.nats_per_token, "held_out_error": found.nats_per_token_error}

    return validate


def _sampling(text: Prepared, lm: LM) -> Callable[[int, nn.Module], str]:
    """The likeliest answer to the first prompt, as it goes."""
    start = int(text.first.answer.argmax())
    prompt: Sequence[int] = text.first.ids[:start].tolist()
    length = len(text.first.ids) - start

    def draw(_step: int, model: nn.Module) -> str:
        assert isinstance(model, Network)
        written = sample(lm.process, model, prompt=prompt, length=length, temperature=0.0, device=device_of(model))
        return lm.decode(written.tokens[0, start:])

    return draw
