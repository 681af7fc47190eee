"""The families of released checkpoints, one file each (the research ones, which share a network, together)."""

from redraft.models.families import (
    a2d,
    bert,
    diffugpt,
    diffullama,
    diffusion_gemma,
    dream,
    illada,
    llada,
    llada2,
    llada_moe,
    research,
    sdar,
    smdm,
)
from redraft.models.families.base import Family

_ALL = (
    *research.FAMILIES,
    llada.FAMILY,
    llada_moe.FAMILY,
    *llada2.FAMILIES,
    illada.FAMILY,
    dream.FAMILY,
    sdar.FAMILY,
    diffullama.FAMILY,
    diffugpt.FAMILY,
    bert.FAMILY,
    diffusion_gemma.FAMILY,
    smdm.FAMILY,
    a2d.FAMILY,
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}

__all__ = ["FAMILIES", "Family"]
