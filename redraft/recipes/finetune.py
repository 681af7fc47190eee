"""The recipe of fine-tuning on conversations: one frozen tree, like that of training (``config.Config``)."""

from typing import Literal

from pydantic import Field

from redraft.recipes.config import EvalConfig, TrainConfig, frozen


@frozen
class AnswersConfig:
    """The loss of answers (``objectives.answers``). None is its own default; an option that it has not is an error."""

    name: Literal["llada", "dream"] = "llada"
    eps: float | None = Field(default=None, ge=0.0, lt=1.0)
    """llada: the least mask rate."""
    weighting: Literal["cart", "time", "linear", "flat"] | None = None
    """dream: by the context that is seen, by 1 / t, by 1 - t, or all alike."""
    cart: float | None = Field(default=None, gt=0.0, lt=1.0)
    """dream: the less, the farther context reaches."""
    block: int | None = Field(default=None, ge=1)
    """Full attention: learn answers in blocks of so many tokens, as they are to be written."""
    drop: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Share of the conversations whose prompt is masked as a whole, for guidance without a prompt."""


@frozen
class ChatConfig:
    """Where conversations come from, and how they become rows."""

    source: str | None = None
    """A .jsonl file (``redraft.data.chat.conversations``)."""
    rows: Literal["batch", "fixed", "apart", "packed"] = "batch"
    """Padded by ends of text, learned, to a batch's longest or to ``length``; by what nobody reads; or side by side."""
    length: int | None = Field(default=None, ge=2)
    """Most tokens of a row; longer conversations are left out. None is the context of the model."""
    answers: Literal["each", "last", "all"] = "each"
    """What is learned: each answer in a row of its own, the last one only, or all of a conversation at once."""
    template: str | None = None
    """Jinja, or ``plain``; none is the model's own."""
    turn: str | None = None
    """The token that ends an answer; none is what the template has."""
    limit: int | None = Field(default=None, ge=1)
    """Read no more than so many conversations."""
    held_out: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the conversations held out, chosen by content hash."""


@frozen
class LoraConfig:
    """Low-rank adapters in place of training all weights (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

    rank: int | None = Field(default=None, ge=1)
    """Rank of the adapters; none trains all weights."""
    alpha: float | None = Field(default=None, gt=0.0)
    """Adapters are multiplied by alpha / rank; none is twice the rank."""
    targets: str = "all"
    """Names of linear layers, such as q_proj,v_proj; ``all`` but the head. A mixture's experts, kept as one tensor, are
    not reached: of such models ``all`` is attention and what is dense. results.json names the layers (``adapted``)."""


@frozen
class Finetune:
    """Supervised fine-tuning of any language model of masks. LLaDA's optimisation unless changed."""

    recipe: str = "sft"
    model: str | None = None
    """A run's folder, a saved model, or a Hugging Face id."""
    tokenizer: str | None = None
    """Released checkpoints: the folder or id of another tokenizer than their own."""
    family: str | None = None
    """Released checkpoints that do not tell their family."""
    loss: AnswersConfig = AnswersConfig()
    data: ChatConfig = ChatConfig()
    lora: LoraConfig = LoraConfig()
    quantize: Literal["int8", "nf4"] | None = None
    """Released checkpoints: keep the weights that adapters stand beside in 8 or 4 bits (QLoRA)."""
    checkpointing: bool = False
    """Compute blocks again for their gradients: less memory, more time."""
    train: TrainConfig = TrainConfig(steps=1000, batch=16, lr=2.5e-5, warmup=50, decay=0.1, weight_decay=0.1)
    eval: EvalConfig = EvalConfig()
