"""The named recipes. An ablation is a one-line difference from another recipe.

Each runs on two CPU cores in minutes; the numbers behind their settings are in LOG.md.
"""

from collections.abc import Callable
from dataclasses import replace

from redraft.errors import unknown
from redraft.recipes.config import Config, DataConfig, EvalConfig, ModelConfig, ProcessConfig, TrainConfig


def mdlm() -> Config:
    """Masked diffusion (Sahoo et al. 2024, arXiv 2406.07524): linear schedule, time-free, the NELBO itself."""
    return Config(
        recipe="mdlm",
        objective="nelbo",
        process=ProcessConfig(name="masked"),
        model=ModelConfig(depth=2),
        data=DataConfig(source="python-docs", tokenizer="bpe", vocab=4096, length=64),
        train=TrainConfig(
            steps=2000,
            batch=16,
            optimizer="muon",
            lr=1e-2,
            muon_lr=2e-2,
            weight_decay=0.1,
            warmup=50,
            decay=0.7,
            eval_every=250,
        ),
        eval=EvalConfig(draws=16),
    )


def udlm() -> Config:
    """Uniform diffusion (Schiff et al. 2024, arXiv 2412.10193; the loss of Duo and SEDD-uniform too)."""
    base = mdlm()
    return replace(
        base, recipe="udlm", process=ProcessConfig(name="uniform"), model=replace(base.model, time_conditioned=True)
    )


def gidd() -> Config:
    """Mask and uniform noise together (von Rütte et al. 2025, arXiv 2503.04482), p_u = 0.2, the NELBO unweighted."""
    return replace(udlm(), recipe="gidd", process=ProcessConfig(name="hybrid", uniform_share=0.2))


def gaussian() -> Config:
    """Gaussian noise on a fixed codebook, cross-entropy on the denoised token (CDCD's loss; VP, linear gamma)."""
    noise = ProcessConfig(name="gaussian", schedule="linear_gamma", dim=64)
    return replace(mdlm(), recipe="gaussian", objective="cross_entropy", process=noise)


def autoregressive() -> Config:
    """The left-to-right baseline: the same network with causal attention, the exact likelihood."""
    return replace(mdlm(), recipe="autoregressive", objective="autoregressive", model=ModelConfig(depth=2, causal=True))


def toy_masked() -> Config:
    """The 13-unit toy language (252 sentences, H = 0.92157 nats/token), masked."""
    return Config(
        recipe="toy_masked",
        model=ModelConfig(depth=2),
        data=DataConfig(source="toy", tokenizer="toy", length=6),
        train=TrainConfig(steps=1000, batch=128, optimizer="muon", lr=5e-3, muon_lr=2e-2, warmup=20, decay=0.9),
        eval=EvalConfig(draws=64, rows=None),
    )


def toy_uniform() -> Config:
    """The toy language under uniform noise."""
    base = toy_masked()
    return replace(
        base,
        recipe="toy_uniform",
        process=ProcessConfig(name="uniform"),
        model=replace(base.model, time_conditioned=True),
        train=replace(base.train, steps=900),
    )


def toy_hybrid() -> Config:
    """The toy language under mask and uniform noise together."""
    return replace(toy_uniform(), recipe="toy_hybrid", process=ProcessConfig(name="hybrid", uniform_share=0.2))


def toy_gaussian() -> Config:
    """The toy language under Gaussian noise on 13 fixed vectors at right angles."""
    base = toy_masked()
    noise = ProcessConfig(name="gaussian", schedule="linear_gamma", gamma_min=-3.0, gamma_max=3.0)
    train = replace(base.train, steps=1200, lr=2e-2, muon_lr=3e-2)
    return replace(base, recipe="toy_gaussian", objective="cross_entropy", process=noise, train=train)


RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (mdlm, udlm, gidd, gaussian, autoregressive, toy_masked, toy_uniform, toy_hybrid, toy_gaussian)
}


def get(name: str) -> Config:
    """The configuration of a named recipe. Errors: ``ValueError`` naming the nearest."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()
