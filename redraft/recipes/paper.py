"""The papers' own data, sizes and optimisers: what to run where there is the hardware for it.

Each is the preset of the same name with the scale of its paper. Three things differ from the papers throughout: the
network is ours (no dropout, no gates, sinusoids beside rotary positions), learning rates fall linearly where they fall
at all, and t is drawn low-discrepancy with one shared shift unless the paper draws it independently. ``text8.txt`` and
``lm1b`` are a file and a folder of text to be put in place; OpenWebText comes from the Hub.
"""

from dataclasses import replace

from redraft.recipes import lineage
from redraft.recipes.config import Config, DataConfig, LossConfig, ProcessConfig, TrainConfig

_TEXT8 = DataConfig(source="text8.txt", tokenizer="chars", length=256)
_LM1B = DataConfig(source="lm1b", tokenizer="bert-base-uncased", length=128)
_OPENWEBTEXT = DataConfig(source="Skylion007/openwebtext", tokenizer="gpt2", length=1024, held_out=0.0125)

_SEDD = TrainConfig(
    steps=1_000_000, batch=512, optimizer="adamw", lr=3e-4, warmup=2500, decay=0.0, clip=1.0, ema=0.9999,
    precision="bfloat16", eval_every=10_000, save_every=10_000,
)  # fmt: skip
"""What SEDD trained with, and MDLM, RADD, UDLM, Duo and BD3-LM after it."""
_D3PM = replace(_SEDD, lr=2e-4, warmup=5000, clip=0.25, ema=0.0)
_MD4 = replace(_SEDD, lr=5e-4, warmup=2000, decay=1.0, weight_decay=0.03)


def _paper(base: Config, data: DataConfig, train: TrainConfig, depth: int = 12) -> Config:
    model = replace(base.model, depth=depth)
    return replace(base, recipe=f"{base.recipe}_paper", model=model, data=data, train=train)


def _thousand_steps(base: Config) -> Config:
    return replace(base, process=replace(base.process, steps=1000))


def d3pm_absorbing_paper() -> Config:
    """D3PM's text8 run: T = 1000, 12 layers of 768, 256 characters, batch 512, 1M steps, lr 2e-4, clip 0.25."""
    return _paper(_thousand_steps(lineage.d3pm_absorbing()), _TEXT8, _D3PM)


def d3pm_uniform_paper() -> Config:
    """D3PM's text8 run with uniform noise: T = 1000, otherwise as ``d3pm_absorbing_paper``."""
    return _paper(_thousand_steps(lineage.d3pm_uniform()), _TEXT8, _D3PM)


def d3pm_neighbour_paper() -> Config:
    """D3PM's text8 run along the neighbour graph: T = 1000, otherwise as ``d3pm_absorbing_paper``."""
    return _paper(_thousand_steps(lineage.d3pm_neighbour()), _TEXT8, _D3PM)


def sedd_absorb_paper() -> Config:
    """SEDD small on OpenWebText: AdamW 3e-4, warm-up 2500, EMA 0.9999, batch 512, 1.3M steps, t independent."""
    return _paper(lineage.sedd_absorb(), _OPENWEBTEXT, replace(_SEDD, steps=1_300_000, times="uniform"))


def sedd_uniform_paper() -> Config:
    """SEDD small with uniform noise of a geometric schedule on OpenWebText: as ``sedd_absorb_paper``."""
    base = replace(lineage.sedd_uniform(), process=ProcessConfig(name="uniform", schedule="geometric"))
    return _paper(base, _OPENWEBTEXT, replace(_SEDD, steps=1_300_000, times="uniform"))


def mdlm_paper() -> Config:
    """MDLM on OpenWebText: GPT-2 tokens, length 1024, batch 512, 1M steps (262B tokens), AdamW 3e-4, EMA 0.9999."""
    return _paper(lineage.mdlm(), _OPENWEBTEXT, _SEDD)


def md4_paper() -> Config:
    """MD4 on text8: 12 layers of 768, 256 characters, lr 5e-4, weight decay 0.03, warm-up 2000, EMA 0.9999, 1M."""
    return _paper(lineage.md4(), _TEXT8, _MD4)


def genmd4_paper() -> Config:
    """GenMD4 on text8: as ``md4_paper``."""
    return _paper(lineage.genmd4(), _TEXT8, _MD4)


def radd_paper() -> Config:
    """RADD small on OpenWebText, lambda-DCE: AdamW 3e-4, warm-up 2500, EMA 0.9999, batch 512, 400k steps reported."""
    return _paper(lineage.radd(), _OPENWEBTEXT, replace(_SEDD, steps=400_000))


def diffusionbert_paper() -> Config:
    """DiffusionBERT on LM1B: length 128, lr 5e-4, warm-up 10k, lambda 0.01; steps and batch are not stated here."""
    base = replace(lineage.diffusionbert(), loss=LossConfig(auxiliary=0.01))
    return _paper(base, _LM1B, replace(_SEDD, lr=5e-4, warmup=10_000, ema=0.0))


def udlm_paper() -> Config:
    """UDLM on LM1B: bert-base-uncased tokens, length 128, batch 512, 1M steps (33B tokens), AdamW 3e-4."""
    return _paper(lineage.udlm(), _LM1B, _SEDD)


def duo_paper() -> Config:
    """Duo on OpenWebText: as ``mdlm_paper``, the first 500k of 1M steps relaxed with tau = 0.001."""
    base = replace(lineage.duo(), loss=LossConfig(curriculum=0.5, temperature=1e-3))
    return _paper(base, _OPENWEBTEXT, _SEDD)


def gidd_paper() -> Config:
    """GIDD base on OpenWebText: context 512, batch 512, 500k steps, lr 5e-4, weight decay 0.02, warm-up 10k."""
    train = replace(_SEDD, steps=500_000, lr=5e-4, weight_decay=0.02, warmup=10_000, decay=1.0, ema=0.0)
    return _paper(lineage.gidd(), replace(_OPENWEBTEXT, length=512), train)


def bd3lm_paper() -> Config:
    """BD3-LM on OpenWebText, blocks of 4: 150k steps from an MDLM trained for 850k (``mdlm_paper``)."""
    base = lineage.bd3lm()
    base = replace(base, model=replace(base.model, block=4, init="runs/mdlm_paper"))
    return _paper(base, _OPENWEBTEXT, replace(_SEDD, steps=150_000))


def autoregressive_paper() -> Config:
    """The left-to-right baseline beside MDLM on OpenWebText: as ``mdlm_paper``."""
    return _paper(lineage.autoregressive(), _OPENWEBTEXT, _SEDD)


PAPER = (
    *(d3pm_absorbing_paper, d3pm_uniform_paper, d3pm_neighbour_paper, sedd_absorb_paper, sedd_uniform_paper),
    *(mdlm_paper, md4_paper, genmd4_paper, radd_paper, diffusionbert_paper, udlm_paper, duo_paper, gidd_paper),
    *(bd3lm_paper, autoregressive_paper),
)
