"""Released research checkpoints: MDLM, BD3-LM, UDLM, Duo, SEDD, RADD and GIDD, read and written in their own layouts.

All of them are one network, ``redraft.models.dit``. Which fields and keys a layout has was read off the code that
writes it: github.com/kuleshov-group/{mdlm,bd3lms,discrete-diffusion-guidance}, s-sahoo/duo,
louaaron/Score-Entropy-Discrete-Diffusion, ML-GSAI/RADD and dvruette/gidd.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from redraft import processes
from redraft.models.dit import DenoiserConfig, DiTConfig, DiTDenoiser
from redraft.models.families.base import Family, Fields, Known, of_type
from redraft.models.weights import renamed
from redraft.processes import Categorical

_BACKBONE = "backbone."
"""What the denoiser calls its network. Families whose files hold the bare network leave it out."""


def _mdlm(fields: Fields) -> Known:
    """Masked noise, SUBS; told the time or, as released, not (Sahoo et al. 2406.07524)."""
    clock = "sigma" if fields("time_conditioning", bool) else "nothing"
    return _known(DenoiserConfig(_network(fields), _masked(fields), clock), fields("model_length", int))


def _bd3lm(fields: Fields) -> Known:
    """MDLM in blocks (Arriola et al. 2503.09573), and what its authors stored beside it: full, and left to right."""
    timed, length = fields("adaln", bool, True), fields("model_length", int)
    clock = "sigma" if timed and fields("time_conditioning", bool) else "nothing"
    network, bounds = _network(fields, timed), fields("var_min", bool, True)
    config = DenoiserConfig(network, _masked(fields), clock, bounds=bounds)
    if fields("causal", bool, False):
        # rows of these models begin with GPT-2's <|endoftext|>, its last token
        return _known(replace(config, attention="causal", start=config.process.K - 1), length)
    block = fields("block_size", int)
    if not fields("cross_attn", bool, True) or block == length:
        return _known(config, length)
    if length % block:
        raise ValueError(f"{fields.path}: block_size {block} does not divide model_length {length}")
    return _known(replace(config, attention="block", block=block), length)


def _udlm(fields: Fields) -> Known:
    """Uniform noise on the whole vocabulary; guided models know classes (Schiff et al. 2412.10193)."""
    network = _network(fields)
    if fields("cfg", bool, False):
        network = replace(network, classes=fields("cfg_num_classes", int) + 1)
    clock = "sigma" if fields("time_conditioning", bool) else "nothing"
    return _known(DenoiserConfig(network, processes.uniform(network.vocab), clock), fields("model_length", int))


def _duo(fields: Fields) -> Known:
    """Uniform noise on the whole vocabulary, padding included, distilled or not (Sahoo et al. 2506.10892)."""
    if fields("causal", bool, False):
        raise ValueError(f"{fields.path}: field 'causal' is True, which no released Duo checkpoint sets")
    network = _network(fields)
    return _known(DenoiserConfig(network, processes.uniform(network.vocab), "sigma"), fields("model_length", int))


def _sedd(fields: Fields) -> Known:
    """Masked noise, outputs log-scores (Lou et al. 2310.16834)."""
    fields.only("graph.type", "absorb")
    fields.only("noise.type", "loglinear")
    scores = "scaled" if fields("model.scale_by_sigma", bool) else "plain"
    network = replace(_hydra_network(fields), code=fields("model.cond_dim", int))
    config = DenoiserConfig(network, processes.masked(fields("tokens", int)), "sigma", scores=scores)
    return _known(config, fields("model.length", int))


def _radd(fields: Fields) -> Known:
    """Masked noise, no time anywhere, norms with a bias (Ou et al. 2406.03736)."""
    network = replace(_hydra_network(fields), norm_bias=True)
    return _known(DenoiserConfig(network, processes.masked(fields("tokens", int))), fields("model.length", int))


def _gidd(fields: Fields) -> Known:
    """Masks with a share of uniform noise, told t itself (von Rütte et al. 2503.04482)."""
    length, share = fields("max_seq_len", int), fields("p_uniform", float)
    if not 0 <= share < 1:
        raise ValueError(f"{fields.path}: field 'p_uniform' is {share}, expected a share from 0 to below 1")
    masked = _masked(fields)
    network = DiTConfig(
        vocab=masked.V,
        width=fields("hidden_size", int),
        depth=fields("num_hidden_layers", int),
        heads=fields("num_attention_heads", int),
        code=fields("timestep_cond_dim", int),
        table=length,
        dropout=fields("attention_dropout", float),
    )
    process = processes.hybrid(masked.K, share, mask_id=masked.mask_id) if share else masked
    return _known(DenoiserConfig(network, process, "t", margin=fields("t_eps", float)), length)


def _known(config: DenoiserConfig, context: int) -> Known:
    return Known(lambda: DiTDenoiser(config), context)


def _network(fields: Fields, timed: bool = True) -> DiTConfig:
    return DiTConfig(
        vocab=fields("vocab_size", int),
        width=fields("hidden_dim", int),
        depth=fields("n_blocks", int),
        heads=fields("n_heads", int),
        code=fields("cond_dim", int) if timed else None,
        dropout=fields("dropout", float),
    )


def _hydra_network(fields: Fields) -> DiTConfig:
    return DiTConfig(
        vocab=fields("tokens", int) + 1,
        width=fields("model.hidden_size", int),
        depth=fields("model.n_blocks", int),
        heads=fields("model.n_heads", int),
        code=None,
        dropout=fields("model.dropout", float),
    )


def _masked(fields: Fields) -> Categorical:
    """The last id is [MASK], appended to the vocabulary, unless config.json says where it lies."""
    V = fields("vocab_size", int)
    mask_id = fields("mask_token_id", int, V - 1)
    if mask_id >= V:
        raise ValueError(f"{fields.path}: field 'mask_token_id' is {mask_id}, expected an id below vocab_size {V}")
    return processes.masked(V - 1 if mask_id == V - 1 else V, mask_id=mask_id)


def _is_hydra(config: Mapping[str, Any]) -> bool:
    return "model_type" not in config and isinstance(config.get("model"), Mapping) and "tokens" in config


_bare = partial(renamed, stored_as=lambda name: name.removeprefix(_BACKBONE))

FAMILIES = (
    Family("mdlm", of_type("mdlm"), _mdlm, tokenizer="gpt2"),
    Family("bd3lm", of_type("bd3lm"), _bd3lm, tokenizer="gpt2"),
    Family("udlm", of_type("udlm"), _udlm, tokenizer="bert-base-uncased"),
    Family("duo", of_type("duo"), _duo, tokenizer="gpt2", pad_token="[PAD]"),
    Family("sedd", lambda config: _is_hydra(config) and "graph" in config, _sedd, _bare, tokenizer="gpt2"),
    Family("radd", lambda config: _is_hydra(config) and "graph" not in config, _radd, _bare, tokenizer="gpt2"),
    Family("gidd", lambda config: of_type("dit")(config) and "p_uniform" in config, _gidd, _bare, tokenizer="gpt2"),
)
