"""The named recipes: the lineage, the Gaussian family, the toy language. An ablation is a one-line difference.

Those without ``_paper`` run on two CPU cores in minutes; the numbers behind their settings are in LOG.md.
"""

from collections.abc import Callable

from redraft.errors import unknown
from redraft.recipes.config import Config
from redraft.recipes.gaussian import GAUSSIAN
from redraft.recipes.lineage import LINEAGE
from redraft.recipes.paper import PAPER
from redraft.recipes.toy import TOYS

RECIPES: dict[str, Callable[[], Config]] = {recipe.__name__: recipe for recipe in (*LINEAGE, *GAUSSIAN, *TOYS, *PAPER)}


def get(name: str) -> Config:
    """The configuration of a named recipe. Errors: ``ValueError`` naming the nearest."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()
