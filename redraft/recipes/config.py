"""A recipe's shape: one frozen tree of typed fields, each reachable by its dotted name (``train.lr``).

Unknown fields, wrong types and impossible values are refused when the tree is built, before anything runs.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, cast, dataclass_transform, get_args, overload

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from redraft.errors import unknown

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def frozen(cls: type[T]) -> type[T]:
    """A frozen dataclass with keyword fields, which pydantic validates."""
    return cast(type[T], dataclass(frozen=True, kw_only=True, config=_STRICT)(cls))


Matrix = Literal["uniform", "absorbing", "gaussian", "neighbour", "band", "hybrid"]


@frozen
class ProcessConfig:
    """The forward corruption: which noise, on which schedule. A field that the process does not read must be left."""

    name: Literal["masked", "uniform", "hybrid", "gaussian", "d3pm", "spindle", "learned"] = "masked"
    schedule: str | None = None
    """Name of ``redraft.schedules.NAMES``, or of D3PM's own; none is the usual one of the process."""
    steps: int | None = Field(default=None, ge=1)
    """Discrete time: the number T of steps of the chain; none is continuous time. D3PM needs it."""
    matrix: Matrix = "uniform"
    """D3PM: the kind of transition matrix."""
    strength: float = Field(default=0.3, gt=0.0)
    """Spindle (DiffusionBERT): how much a token's frequency moves its noise level."""
    uniform_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Hybrid: the share of uniform noise at its peak (GIDD's p_u)."""
    kind: Literal["vp", "ve", "rf"] = "vp"
    """Gaussian: variance preserving, variance exploding or rectified flow."""
    dim: int = Field(default=16, ge=1)
    """Gaussian: width D of a random codebook; others have their own."""
    gamma_min: float = -4.0
    """Gaussian: -log SNR at t = 0."""
    gamma_max: float = 6.0
    """Gaussian: -log SNR at t = 1."""
    codebook: str = "random"
    """Gaussian: ``random`` unit vectors, ``bits`` of the token's number, or a model folder to take embeddings from."""
    learn_codebook: bool = False
    """Gaussian: train the codebook with the model."""
    normalise: bool = False
    """Gaussian: divide the rows of the codebook by their norms."""


@frozen
class ModelConfig:
    """Our transformer: ``depth`` is the one dial, every width follows from it (``models.transformer.widths``)."""

    depth: int = Field(default=4, ge=1, le=128)
    time_conditioned: bool = False
    attention: Literal["full", "causal", "block", "permuted"] = "full"
    """What a position sees: all, what is left of it, blocks up to its own, or what an order puts before it."""
    block: int | None = Field(default=None, ge=1)
    """Block attention: positions per block; the last of a context may be shorter."""
    head: Literal["subs", "plain", "score", "logistic", "x0", "epsilon", "v", "velocity", "edm"] | None = None
    """What the last layer says (``redraft.models.heads``); none is ``subs`` with a mask and ``plain`` without."""
    reads: Literal["mixture", "vectors"] | None = None
    """Gaussian: how noisy vectors are read (``redraft.models.vectors``); none is ``mixture``."""
    self_conditioned: bool = False
    """Gaussian: whether the model is told what it said before."""
    init: str | None = None
    """Folder of a model to start from: of ours its weights, of a released or converted one the network itself."""
    anneal: int | None = Field(default=None, ge=1)
    """Steps over which attention opens from causal to what the model has; none opens it at once."""


@frozen
class LossConfig:
    """Options of the objective. None is the objective's own default; one it does not know is an error."""

    weighting: Literal["nelbo", "dynamic", "clip"] | None = None
    """gidd: what stands in place of the bound's weights."""
    variant: Literal["t_dse", "t_dce", "lambda_dce", "k_dce"] | None = None
    """radd: which of its four losses of one expectation."""
    auxiliary: float | None = Field(default=None, ge=0.0)
    """d3pm and diffusionbert: the weight lambda of the cross-entropy beside the bound."""
    temperature: float | None = Field(default=None, gt=0.0)
    """duo: of the softmax that stands in for the argmax while the curriculum lasts."""
    curriculum: float | None = Field(default=None, ge=0.0, le=1.0)
    """duo: share of the training spent on the relaxed input."""
    mask_min: float | None = Field(default=None, ge=0.0, lt=1.0)
    """bd3lm: least mask rate drawn."""
    mask_max: float | None = Field(default=None, gt=0.0, le=1.0)
    """bd3lm: greatest mask rate drawn."""
    self_condition: float | None = Field(default=None, ge=0.0, le=1.0)
    """cdcd, langflow, plaid, diffusion_lm, analog_bits: share of rows that a self_conditioned model is asked twice."""
    target: Literal["x0", "epsilon", "v", "velocity", "edm"] | None = None
    """diffusion_lm and analog_bits: what the squared error is measured on, whatever the model predicts."""
    given: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Any objective without masks: share of rows in which a part is given clean, which infilling by ``told`` needs."""
    teacher: str | None = None
    """dcd: folder of the model to distil."""
    jump: float | None = Field(default=None, gt=0.0, le=1.0)
    """dcd: how far in t the student must see beyond the teacher."""


@frozen
class DataConfig:
    """Where the text comes from, and how it becomes rows of ``length`` tokens."""

    source: str = "python-docs"
    """An embedded corpus, a .txt/.jsonl/.parquet file, a folder, or a Hub data set id."""
    tokenizer: str = "bpe"
    """``bytes``, ``chars``, ``bpe`` (trained on the corpus), ``toy``, or a Hugging Face tokenizer folder or id."""
    vocab: int = Field(default=2048, ge=2)
    """Number of ids of a ``bpe`` trained here."""
    length: int = Field(default=128, ge=1)
    """Context length L in tokens."""
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the text held out, chosen by content hash."""
    isolate_documents: bool = False
    """Let attention see only the token's own document inside a packed row."""
    text_field: str = "text"
    """The field of .jsonl, .parquet and Hub records that holds the text."""
    max_documents: int | None = Field(default=None, ge=1)
    """Read no more than this many documents (Hub data sets stream without end)."""


@frozen
class TrainConfig:
    """The optimisation: everything that decides the weights, given data and seed."""

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=16, ge=1)
    """Rows of the GLOBAL batch: the same whatever the number of processes and of accumulated parts."""
    accumulate: int = Field(default=1, ge=1)
    """Parts in which each process works through its share of the batch."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon`` updates the transformer's inner matrices by Muon, the rest by AdamW."""
    lr: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(default=2e-2, gt=0.0)
    """Peak learning rate of Muon."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    warmup: int = Field(default=100, ge=0)
    """Steps of linear warm-up."""
    decay: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of the steps, at the end, in which the learning rate falls linearly to zero."""
    clip: float = Field(default=1.0, ge=0.0)
    """Largest global gradient norm; 0 leaves gradients as they are."""
    ema: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of the moving average of the weights, which is then what is saved; 0 keeps none."""
    times: Literal["stratified", "uniform"] = "stratified"
    """How t is drawn: low-discrepancy over the global batch, or independently."""
    random_length: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the steps whose rows are cut to a random length, so that short texts are met too (LLaDA: 0.01)."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """bfloat16 is mixed: weights and optimiser stay float32."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """``auto`` is DDP whenever there is more than one process."""
    compile: bool = False
    seed: int = 0
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each process; None leaves torch's choice."""
    log_every: int = Field(default=10, ge=1)
    eval_every: int = Field(default=0, ge=0)
    """Steps between validations; 0 validates only at the end."""
    save_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 saves only at the end and when stopped."""
    sample_every: int = Field(default=0, ge=0)
    """Steps between samples shown while training; 0 shows none."""
    tracker: Literal["none", "tensorboard", "trackio"] = "none"


@frozen
class EvalConfig:
    """Validation: how closely the bound is measured."""

    draws: int = Field(default=4, ge=1)
    """Draws of (t, z) per row of held-out text at the end of training."""
    rows: int | None = Field(default=64, ge=2)
    """Rows used by validations during training; the last one takes all."""


@frozen
class Config:
    """A whole experiment. Build one with a recipe function, change it with ``replace`` or dotted overrides."""

    recipe: str = "custom"
    objective: str = "nelbo"
    """See: redraft list objectives."""
    loss: LossConfig = LossConfig()
    process: ProcessConfig = ProcessConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


@cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(cls)


def to_dict(config: object) -> dict[str, Any]:
    """The tree as plain dictionaries, ready for JSON; of a ``Config``, or of any other frozen tree."""
    return _adapter(type(config)).dump_python(config)


@overload
def from_dict(tree: Mapping[str, Any]) -> Config: ...
@overload
def from_dict(tree: Mapping[str, Any], cls: type[T]) -> T: ...
def from_dict(tree: Mapping[str, Any], cls: type[Any] = Config) -> Any:
    """The inverse of ``to_dict``, a ``cls``. Errors: ``ValueError`` naming the field, its value and what is allowed."""
    _refuse_unknown_fields(tree, cls, field_names(cls))
    try:
        return _adapter(cls).validate_python(dict(tree))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}={first.get('input')!r}: {first['msg']}") from None


def override(config: T, values: Mapping[str, Any]) -> T:
    """``config`` with fields set by dotted name: ``override(config, {"train.lr": 3e-4})``.

    Values may be strings, as typed on a command line, where ``none`` is None if the field may be that. Errors:
    ``ValueError`` for an unknown field (with the nearest one) or a value its field refuses.
    """
    tree, known = to_dict(config), _leaves(type(config))
    for name, value in values.items():
        if name not in known:
            raise unknown("field", name, known)
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = None if value == "none" and NoneType in get_args(known[name]) else value
    return from_dict(tree, type(config))


def field_names(cls: Any) -> list[str]:
    """Dotted names of all leaf fields below a configuration class."""
    return list(_leaves(cls))


def _leaves(cls: Any, prefix: str = "") -> dict[str, Any]:
    """The type of each leaf field, by its dotted name."""
    leaves: dict[str, Any] = {}
    for field in fields(cls):
        if is_dataclass(field.type):
            leaves |= _leaves(field.type, f"{prefix}{field.name}.")
        else:
            leaves[prefix + field.name] = field.type
    return leaves


def _refuse_unknown_fields(tree: Mapping[str, Any], cls: Any, known: list[str], prefix: str = "") -> None:
    children = {field.name: field.type for field in fields(cls)}
    for name, value in tree.items():
        if name not in children:
            raise unknown("field", prefix + name, known)
        if isinstance(value, Mapping) and is_dataclass(children[name]):
            _refuse_unknown_fields(value, children[name], known, f"{prefix}{name}.")
