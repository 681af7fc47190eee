"""The families of released checkpoints, one file each (the research ones, which share a network, together)."""

from redraft.models.families import dream, llada, research
from redraft.models.families.base import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (*research.FAMILIES, llada.FAMILY, dream.FAMILY)}

__all__ = ["FAMILIES", "Family"]
