"""Handing a model over to other tools: to folders in their layouts, and to servers that run it for many people."""
