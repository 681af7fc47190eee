"""The named recipes: the lineage, the Gaussian family, the toy language. An ablation is a one-line difference.

Those without ``_paper`` run on two CPU cores in minutes; the numbers behind their settings are in LOG.md.
"""

from collections.abc import Callable
from dataclasses import replace

from redraft.errors import unknown
from redraft.recipes.config import Config, DataConfig, EvalConfig, ModelConfig, ProcessConfig, TrainConfig
from redraft.recipes.lineage import LINEAGE, mdlm
from redraft.recipes.paper import PAPER


def gaussian() -> Config:
    """Gaussian noise on a fixed codebook, cross-entropy on the denoised token (CDCD's loss; VP, linear gamma)."""
    noise = ProcessConfig(name="gaussian", schedule="linear_gamma", dim=64)
    return replace(mdlm(), recipe="gaussian", objective="cross_entropy", process=noise)


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
    for recipe in (*LINEAGE, gaussian, toy_masked, toy_uniform, toy_hybrid, toy_gaussian, *PAPER)
}


def get(name: str) -> Config:
    """The configuration of a named recipe. Errors: ``ValueError`` naming the nearest."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()
