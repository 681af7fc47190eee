"""A DGLM's recipe: one frozen tree of typed fields, in the manner of ``redraft.recipes``, and two recipes."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from redraft.errors import unknown
from redraft.recipes.config import frozen

TINY = "tiny"
"""In place of a model's folder or id: a small random one with a tokenizer learnt from the training text."""


@frozen
class EncoderConfig:
    """What turns a text into a vector."""

    model: str = TINY
    """Folder or Hub id of a ``transformers`` encoder, or the encoder half of T5; ``tiny`` is a small random one."""
    length: int = Field(default=128, ge=1)
    """Tokens of a text that are read; those after it do not count."""


@frozen
class ProposerConfig:
    """The denoiser of one vector: a residual MLP that is told gamma and the vector of the prefix."""

    width: int = Field(default=256, ge=1)
    depth: int = Field(default=4, ge=1)
    """Residual blocks."""
    predicts: Literal["v", "x0", "epsilon"] = "v"
    weighting: Literal["sigmoid", "flat"] = "sigmoid"
    """What an error weighs over noise levels (``redraft.dglm.proposer.Proposer.loss``)."""
    drop: float = Field(default=0.1, ge=0.0, le=1.0)
    """How often training hides the prefix: what guidance without a classifier needs."""
    gamma_min: float = -15.0
    """-log SNR at t = 0."""
    gamma_max: float = 15.0
    """-log SNR at t = 1."""


@frozen
class VerbaliserConfig:
    """The decoder that is told the vector as soft tokens."""

    model: str = TINY
    """Folder or Hub id of a causal ``transformers`` model; ``tiny`` is a small random one."""
    soft_tokens: int = Field(default=8, ge=1)
    noise: float = Field(default=0.05, ge=0.0, lt=1.0)
    """sigma^2 of the noise on the vector, in training and in writing (variance preserving)."""
    drop: float = Field(default=0.1, ge=0.0, le=1.0)
    """How often training hides the prefix, so that a vector alone can be verbalised too."""
    prefix: int = Field(default=64, ge=0)
    """Training: the last tokens of a prefix that are read."""
    length: int = Field(default=64, ge=1)
    """Training: the first tokens of a continuation that are learnt; writing: tokens written unless told."""


@frozen
class ClassifierConfig:
    """What guides towards a label: trained where ``data.label_field`` is set."""

    reads: Literal["noised", "clean"] = "noised"
    """``noised`` knows every noise level; ``clean`` is a logistic regression, asked of the denoised vector: biased."""
    width: int = Field(default=128, ge=1)
    """Hidden width of a ``noised`` one."""


@frozen
class PairsConfig:
    """How text becomes pairs of a prefix and its continuation."""

    words: int = Field(default=64, ge=2)
    """Plain documents are cut into pieces of so many words."""
    prefix_share: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Of a piece's words, those that are its prefix."""
    text_field: str = "text"
    """The field of records without ``prompt`` and ``completion`` that holds the text."""
    label_field: str | None = None
    """.jsonl: the field that holds an attribute to guide by."""
    max_documents: int | None = Field(default=None, ge=1)


@frozen
class StageConfig:
    """The optimisation of one part, by AdamW."""

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=32, ge=1)
    lr: float = Field(default=1e-3, gt=0.0)
    warmup: int = Field(default=20, ge=0)
    decay: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of the steps, at the end, in which the learning rate falls linearly to zero."""
    clip: float = Field(default=1.0, ge=0.0)
    """Largest gradient norm; 0 leaves gradients as they are."""
    weight_decay: float = Field(default=0.0, ge=0.0)


@frozen
class StagesConfig:
    """The stages, which do not wait for one another: each learns from the fixed encoder's vectors."""

    proposer: StageConfig = StageConfig()
    verbaliser: StageConfig = StageConfig()
    classifier: StageConfig = StageConfig()
    seed: int = 0
    log_every: int = Field(default=50, ge=1)


@frozen
class SampleConfig:
    """What ``generate`` does unless told otherwise."""

    steps: int = Field(default=50, ge=1)
    sampler: str = "ancestral"
    """A sampler of ``redraft.sampling`` that is defined for vectors."""
    scale: float = Field(default=3.0, gt=0.0)
    """Sampling moves gamma by -2 log(scale), so that more of the steps are spent among less noise."""
    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)


@frozen
class DGLMConfig:
    """A whole DGLM: its parts, its data and its training."""

    recipe: str = "custom"
    encoder: EncoderConfig = EncoderConfig()
    proposer: ProposerConfig = ProposerConfig()
    verbaliser: VerbaliserConfig = VerbaliserConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    data: PairsConfig = PairsConfig()
    train: StagesConfig = StagesConfig()
    sample: SampleConfig = SampleConfig()


def dglm_toy() -> DGLMConfig:
    """Small random encoder and decoder: minutes on a CPU, to see all parts work."""
    stage = StageConfig(steps=600, batch=32, lr=2e-3)
    return DGLMConfig(
        recipe="dglm_toy",
        encoder=EncoderConfig(length=64),
        proposer=ProposerConfig(width=128, depth=3),
        verbaliser=VerbaliserConfig(soft_tokens=4, prefix=48, length=48),
        data=PairsConfig(words=24),
        train=StagesConfig(proposer=stage, verbaliser=stage, classifier=StageConfig(steps=200)),
    )


def dglm_paper() -> DGLMConfig:
    """Sentence-T5 and GPT-2 large, with what STAR-LDM's code sets; DGLM's own code was never released.

    From that code: standardised vectors, v-prediction, sigmoid weighting, gamma in [-15, 15] by the cosine density,
    prefixes hidden one time in ten, sigma^2 = 0.05, 8 soft tokens, 50 to 250 DDPM steps at scale 3, nucleus 0.9. Not
    reproduced: its training of both parts at once, and its reverse variance, which lies between DDPM's two. Widths,
    steps, learning rates and the prefixes that are hidden from the decoder are ours and untuned. The vector is the mean
    of the encoder's last states: the projection that a sentence-transformers folder keeps beside its encoder is not
    applied.
    """
    return DGLMConfig(
        recipe="dglm_paper",
        encoder=EncoderConfig(model="sentence-transformers/sentence-t5-xl"),
        proposer=ProposerConfig(width=1024, depth=12),
        verbaliser=VerbaliserConfig(model="openai-community/gpt2-large"),
        train=StagesConfig(
            proposer=StageConfig(steps=250_000, batch=128, lr=1e-4, warmup=1000),
            verbaliser=StageConfig(steps=50_000, batch=64, lr=2e-5, warmup=1000),
        ),
    )


RECIPES: dict[str, Callable[[], DGLMConfig]] = {recipe.__name__: recipe for recipe in (dglm_toy, dglm_paper)}


def get(name: str) -> DGLMConfig:
    """The configuration of a named recipe. Errors: ``ValueError`` naming the nearest."""
    if name not in RECIPES:
        raise unknown("DGLM recipe", name, RECIPES)
    return RECIPES[name]()
