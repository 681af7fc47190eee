"""The Gaussian family: each method a preset of (kind, schedule, codebook, head, objective), on the budget of ``mdlm``.

A codebook of unit rows meets the noise at the same levels whatever its width: of 4096 tokens none is told from another
above gamma = -2.8 by itself (1 / sigma^2 = 2 log K), and all are told below -4. The equations stand in the docstrings
of ``redraft.objectives.gaussian`` and ``redraft.schedules``, which the recipes name; those that begin with ``toy_``
are the same methods on the toy language. The network is ours everywhere, and so are sizes and optimisers.
"""

from dataclasses import replace

from redraft.recipes.config import Config, DataConfig, ModelConfig, ProcessConfig
from redraft.recipes.lineage import mdlm
from redraft.recipes.toy import toy_masked

_NAMES = ModelConfig(depth=2, time_conditioned=True, self_conditioned=True, reads="vectors")
"""A network that names tokens. It reads vectors as they are: the mixture costs a second softmax, and is no better."""
_PREDICTS = replace(_NAMES, head="x0", reads="mixture")
"""A network that says vectors. Telling tokens apart amid little noise is given to it by what it reads."""
_CHARS = DataConfig(source="python-docs", tokenizer="chars", length=64)
"""Squared errors teach to tell a hundred tokens apart in minutes, and not four thousand."""
_LEARNED = ProcessConfig(name="gaussian", dim=32, gamma_min=-5.0, gamma_max=5.0, learn_codebook=True, normalise=True)


def gaussian() -> Config:
    """Gaussian noise on a fixed codebook, cross-entropy on the denoised token (CDCD's loss; VP, linear gamma)."""
    noise = ProcessConfig(name="gaussian", schedule="linear_gamma", dim=64)
    return replace(mdlm(), recipe="gaussian", objective="cross_entropy", process=noise)


def _method(recipe: str, objective: str, process: ProcessConfig, model: ModelConfig = _NAMES) -> Config:
    return replace(mdlm(), recipe=recipe, objective=objective, process=process, model=model)


def cdcd() -> Config:
    """CDCD (Dieleman et al. 2022, arXiv 2211.15089): score interpolation, by cross-entropy that is made even in time.

    VE, a normalised learned codebook, the ``adaptive`` schedule, self-conditioning on half the rows. No number
    published for it could be verified.
    """
    return _method("cdcd", "cdcd", replace(_LEARNED, kind="ve", schedule="adaptive"))


def plaid() -> Config:
    """PLAID (Gulrajani & Hashimoto 2023, arXiv 2305.18619): the bound itself, its schedule of least variance learned.

    VP, a normalised learned codebook, learned ends, self-conditioning on a quarter of the rows. Its numbers are of
    models a thousand times this size.
    """
    return _method("plaid", "plaid", replace(_LEARNED, schedule="plaid", gamma_min=-4.0, gamma_max=6.0))


def diffusion_lm() -> Config:
    """Diffusion-LM (Li et al. 2022, arXiv 2205.14217): x0-MSE, rounding and anchor, on the sqrt schedule.

    The codebook learns freely, from unit rows on, and what a position says is a vector. On characters. No bound of it
    on this text was published.
    """
    noise = replace(_LEARNED, dim=16, schedule="sqrt", gamma_min=-2.5, gamma_max=6.0, normalise=False)
    return replace(_method("diffusion_lm", "diffusion_lm", noise, _PREDICTS), data=_CHARS)


def langflow() -> Config:
    """LangFlow (arXiv 2604.11748): cross-entropy, noise levels by a Gumbel law fitted to where information comes in.

    VP, a normalised learned codebook, self-conditioning on half the rows.
    """
    return _method("langflow", "langflow", replace(_LEARNED, schedule="gumbel"))


def rectified_flow() -> Config:
    """``langflow`` in the units of rectified flow, z = tau x + (1 - tau) eps: the same posteriors, read otherwise."""
    flow = langflow()
    return replace(flow, recipe="rectified_flow", process=replace(flow.process, kind="rf"))


def analog_bits() -> Config:
    """Analog bits (Chen et al. 2022, arXiv 2208.04202): squared error of the seven bits of a character's id.

    Published for images and captions. Here ids are those of a tokenizer, whose bits mean little.
    """
    noise = ProcessConfig(name="gaussian", codebook="bits", schedule="cosine", gamma_min=-2.0, gamma_max=6.0)
    return replace(_method("analog_bits", "analog_bits", noise, _PREDICTS), data=_CHARS)


# ----------------------------------------------------------------------------------------------------- toy language


def toy_gaussian() -> Config:
    """The toy language under Gaussian noise on 13 fixed vectors at right angles."""
    base = toy_masked()
    noise = ProcessConfig(name="gaussian", schedule="linear_gamma", gamma_min=-3.0, gamma_max=3.0)
    train = replace(base.train, steps=1200, lr=2e-2, muon_lr=3e-2)
    return replace(base, recipe="toy_gaussian", objective="cross_entropy", process=noise, train=train)


def _toy(method: Config, **noise: float) -> Config:
    """``method`` on the toy language, at the budget of ``toy_gaussian``."""
    base = toy_gaussian()
    process = replace(method.process, dim=ProcessConfig().dim, **noise)
    model = replace(method.model, reads="mixture")  # thirteen units are soon weighed
    return replace(base, recipe=f"toy_{method.recipe}", objective=method.objective, process=process, model=model)


def toy_cdcd() -> Config:
    """``cdcd`` on the toy language."""
    return _toy(cdcd(), gamma_min=-4.0, gamma_max=3.0)


def toy_plaid() -> Config:
    """``plaid`` on the toy language."""
    return _toy(plaid(), gamma_min=-4.0, gamma_max=4.0)


def toy_diffusion_lm() -> Config:
    """``diffusion_lm`` on the toy language."""
    return _toy(diffusion_lm(), gamma_min=-4.0, gamma_max=4.0)


def toy_langflow() -> Config:
    """``langflow`` on the toy language."""
    return _toy(langflow(), gamma_min=-4.0, gamma_max=3.0)


def toy_analog_bits() -> Config:
    """``analog_bits`` on the toy language: four bits, of whose sixteen codes three belong to no unit."""
    return _toy(analog_bits(), gamma_min=-2.0, gamma_max=5.0)


GAUSSIAN = (
    *(gaussian, cdcd, plaid, diffusion_lm, langflow, rectified_flow, analog_bits),
    *(toy_gaussian, toy_cdcd, toy_plaid, toy_diffusion_lm, toy_langflow, toy_analog_bits),
)
"""The Gaussian family."""
