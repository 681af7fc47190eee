"""The methods of the discrete lineage, each a preset of (process, head, context, objective) on one text and budget.

All start from ``mdlm``: a method is what differs from it. The network is ours everywhere, so what is compared are
methods, not architectures; the papers' sizes and optimisers are the ``_paper`` recipes of ``redraft.recipes.paper``,
and the published numbers quoted are theirs. Each runs on two CPU cores in minutes; LOG.md has what they reached here.
The equations stand in the docstrings of ``redraft.objectives`` and ``redraft.processes``, which the recipes name.
"""

from dataclasses import replace

from redraft.recipes.config import (
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
    Matrix,
    ModelConfig,
    ProcessConfig,
    TrainConfig,
)

_MASKED, _UNIFORM = ProcessConfig(name="masked"), ProcessConfig(name="uniform")
_TIMED = ModelConfig(depth=2, time_conditioned=True)
_BYTES = DataConfig(source="python-docs", tokenizer="bytes", length=128)
"""Transition matrices are V x V a step: they want a small vocabulary."""


def mdlm() -> Config:
    """MDLM: masked diffusion, time-free, the NELBO itself (Sahoo et al. 2024, arXiv 2406.07524, eqs. 10-11).

    Linear alpha (their log-linear noise), SUBS, weight 1/t on the cross-entropy of masked tokens. Published: perplexity
    at most 23.21 on OpenWebText (262B tokens), 27.04 on LM1B.
    """
    return Config(
        recipe="mdlm",
        objective="mdlm",
        process=_MASKED,
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


def _method(recipe: str, objective: str, process: ProcessConfig, model: ModelConfig = _TIMED) -> Config:
    return replace(mdlm(), recipe=recipe, objective=objective, process=process, model=model)


def _d3pm(matrix: Matrix, schedule: str, data: DataConfig | None = None) -> Config:
    noise = ProcessConfig(name="d3pm", matrix=matrix, schedule=schedule, steps=128)
    config = _method(f"d3pm_{matrix}", "d3pm", noise)
    return config if data is None else replace(config, data=data)


def d3pm_absorbing() -> Config:
    """D3PM with [MASK] (Austin et al. 2021, arXiv 2107.03006, eqs. 4-5): beta_t = 1/(T-t+1), vb + 0.01 CE.

    Its head gives [MASK] mass too. Published: at most 1.45 +- 0.02 bits/char on text8 (T = 1000), perplexity 76.9 on
    LM1B in its own tokens.
    """
    config = _d3pm("absorbing", "reciprocal")
    return replace(config, model=replace(config.model, head="plain"))


def d3pm_uniform() -> Config:
    """D3PM with uniform noise (Austin et al. 2021, appendix A.2), cosine schedule, the bound alone (lambda = 0).

    Published: at most 1.61 +- 0.02 bits/char on text8, and 1.91 with cross-entropy added.
    """
    return _d3pm("uniform", "cosine")


def d3pm_gaussian() -> Config:
    """D3PM with discretised Gaussian noise (Austin et al. 2021, appendix A.2): bytes move to bytes near in value.

    Made for pixels: published on CIFAR-10 only (3.435 bits/dim with the logistic head); here on bytes of text.
    """
    return _d3pm("gaussian", "linear", _BYTES)


def d3pm_neighbour() -> Config:
    """D3PM along a nearest-neighbour graph of embeddings (Austin et al. 2021, appendix A.2).

    Published: at most 1.59 +- 0.03 bits/char on text8, perplexity 149.5 on LM1B in its own tokens.
    """
    return _d3pm("neighbour", "mutual_information", _BYTES)


def d3pm_band() -> Config:
    """D3PM with a band-diagonal matrix (Austin et al. 2021, appendix A.2): in its code, not in its tables."""
    return _d3pm("band", "linear", _BYTES)


def d3pm_hybrid() -> Config:
    """D3PM with mask and uniform noise together (Austin et al. 2021, appendix A.2): no number published for text."""
    return _d3pm("hybrid", "reciprocal")


def sedd_absorb() -> Config:
    """SEDD with [MASK] (Lou et al. 2023, arXiv 2310.16834): score entropy on a score head.

    Published: perplexity at most 24.10 on OpenWebText, 32.79 on LM1B; 1.39 bits/char on text8.
    """
    return _method("sedd_absorb", "sedd", _MASKED, replace(_TIMED, head="score"))


def sedd_uniform() -> Config:
    """SEDD with uniform noise (Lou et al. 2023, arXiv 2310.16834), whose closed form is written without V x V rates.

    Linear alpha, under which the bound has far less spread than under the paper's geometric one (``_paper``).
    Published: perplexity at most 29.7 on OpenWebText, 40.25 on LM1B; 1.47 bits/char on text8.
    """
    return _method("sedd_uniform", "sedd", _UNIFORM, replace(_TIMED, head="score"))


def csm() -> Config:
    """Concrete score matching (Meng et al. 2022), denoising form: squared error of ratios. No bound, none published.

    The ancestor of SEDD: what the logarithm in score entropy is worth.
    """
    return _method("csm", "csm", _MASKED, replace(_TIMED, head="score"))


def md4() -> Config:
    """MD4 (Shi et al. 2024, arXiv 2406.04329): the same bound as MDLM under a cosine schedule, time told.

    Published: at most 1.37 bits/char on text8.
    """
    return _method("md4", "md4", ProcessConfig(name="masked", schedule="cosine"))


def genmd4() -> Config:
    """GenMD4 (Shi et al. 2024, arXiv 2406.04329): every token learns its own exponent, alpha = 1 - t^w.

    Two draws of the noise a step, REINFORCE leave-one-out. Published: at most 1.34 bits/char on text8.
    """
    return _method("genmd4", "genmd4", ProcessConfig(name="learned"))


def radd() -> Config:
    """RADD (Ou et al. 2024, arXiv 2406.03736): no time input, lambda-DCE; loss.variant has the other three losses.

    No number of a single variant could be verified.
    """
    return replace(_method("radd", "radd", _MASKED, ModelConfig(depth=2)), loss=LossConfig(variant="lambda_dce"))


def maskgit() -> Config:
    """MaskGIT's plain cross-entropy on masked tokens (Chang et al. 2022), cosine schedule: a baseline, no bound.

    Published for images only.
    """
    return _method("maskgit", "maskgit", ProcessConfig(name="masked", schedule="cosine"), ModelConfig(depth=2))


def diffusionbert() -> Config:
    """DiffusionBERT (He et al. 2022, arXiv 2211.15029): the spindle schedule, rare tokens masked first.

    Its S subtracts the mean over the vocabulary, not over the sentence, which keeps the bound exact. Published:
    perplexity 63.78 on LM1B (started from BERT, and by its own coupled schedule).
    """
    return _method("diffusionbert", "diffusionbert", ProcessConfig(name="spindle", strength=0.3))


def udlm() -> Config:
    """UDLM: uniform diffusion in closed form (Schiff et al. 2024, arXiv 2412.10193).

    Published: perplexity at most 31.28 on LM1B; 1.44 bits/char on text8.
    """
    return _method("udlm", "udlm", _UNIFORM)


def duo() -> Config:
    """Duo (Sahoo et al. 2025, arXiv 2506.10892): UDLM's loss, whose first half of training reads relaxed tokens.

    The relaxed tokens are sparse, as in Duo++ (Deschenaux et al. 2026, arXiv 2602.21185). Published: perplexity at most
    25.2 on OpenWebText, 29.9 on LM1B. ``redraft distil`` makes its few-step students.
    """
    return _method("duo", "duo", _UNIFORM)


def gidd() -> Config:
    """GIDD: mask and uniform noise together (von Rütte et al. 2025, arXiv 2503.04482), p_u = 0.2, dynamic weights.

    Published (OpenWebText, 131B tokens, its own protocol): perplexity at most 24.38 with p_u = 0.2.
    """
    hybrid = _method("gidd", "gidd", ProcessConfig(name="hybrid", uniform_share=0.2))
    return replace(hybrid, loss=LossConfig(weighting="dynamic"))


def bd3lm() -> Config:
    """BD3-LM: blocks left to right, masked diffusion within (Arriola et al. 2025, arXiv 2503.09573, section 3).

    Published (OpenWebText): perplexity at most 22.27, 21.68 and 20.73 with blocks of 16, 8 and 4.
    """
    return _method("bd3lm", "bd3lm", _MASKED, ModelConfig(depth=2, attention="block", block=16))


def any_order() -> Config:
    """Any-order autoregression: a random order a row, all its conditionals in one forward of two streams (XLNet's).

    The mean over orders bounds -log p as masked diffusion does (ARDM, Hoogeboom et al. 2021: 1.43 bits/char on text8).
    """
    return _method("any_order", "any_order", _MASKED, ModelConfig(depth=2, attention="permuted"))


def autoregressive() -> Config:
    """The left-to-right baseline: the same network with causal attention, the exact likelihood.

    Published beside MDLM: perplexity 17.54 on OpenWebText, 22.32 on LM1B.
    """
    return _method("autoregressive", "autoregressive", _MASKED, ModelConfig(depth=2, attention="causal"))


LINEAGE = (
    *(d3pm_absorbing, d3pm_uniform, d3pm_gaussian, d3pm_neighbour, d3pm_band, d3pm_hybrid),
    *(sedd_absorb, sedd_uniform, csm, mdlm, md4, genmd4, radd, maskgit, diffusionbert),
    *(udlm, duo, gidd, bd3lm, any_order, autoregressive),
)
