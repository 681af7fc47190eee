"""DiffusionGemma: uniform noise on one canvas behind a text, by ``transformers``' own class.

config.json and keys as released: huggingface.co/google/diffusiongemma-26B-A4B-it. Not done: images, and a cache of the
text's keys from call to call (the text is read anew, which says the same). A longer text is written canvas by canvas,
each given what was written before it.
"""

from functools import partial

from redraft.models.canvas import CanvasDenoiser
from redraft.models.families.a2d import base_config
from redraft.models.families.base import Family, Fields, Known, named_ids, of_type, replaced
from redraft.models.weights import renamed


def reads(fields: Fields) -> Known:
    """DiffusionGemma: uniform noise on a canvas behind a text, conditioned on what it said before; text only."""
    fields.refuse(tie_word_embeddings=True)
    fields("canvas_length", int)
    text = Fields(fields.path, fields.values.get("text_config") or {})
    for name in ("num_experts", "top_k_experts", "moe_intermediate_size"):  # the class has no network without any
        text(name, int)
    if text.values.get("use_bidirectional_attention") == "all":
        raise ValueError(
            f"{fields.path}: field 'use_bidirectional_attention' is 'all', and only a text read causally is supported"
        )
    rows, config = text("vocab_size", int), base_config(fields)
    ids = named_ids(Fields(fields.path, config.text_config.to_dict()), rows)
    return Known(lambda: CanvasDenoiser(config), int(config.text_config.max_position_embeddings), ids)


FAMILY = Family(
    "diffusion_gemma",
    of_type("diffusion_gemma"),
    reads,
    partial(renamed, stored_as=partial(replaced, names={}, prefix="network.")),
    decoding={"sampler": "ancestral", "length": 256, "steps": 48},
)
