"""The toy language as recipes: 252 sentences of 13 units, H = 0.92157 nats/token, learned in seconds."""

from dataclasses import replace

from redraft.recipes.config import Config, DataConfig, EvalConfig, ModelConfig, ProcessConfig, TrainConfig


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


TOYS = (toy_masked, toy_uniform, toy_hybrid)
