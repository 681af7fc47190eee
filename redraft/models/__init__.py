"""Denoisers: our transformer, and the folder it is stored in."""

from redraft.models.transformer import Transformer, TransformerConfig, widths

__all__ = ["Transformer", "TransformerConfig", "widths"]
