"""DiffuLLaMA: Llama 2 made to denoise, its answers still shifted by one (Gong et al. 2410.17891).

config.json and keys are Llama's, model_type among them (huggingface.co/diffusionfamily/diffullama): nothing in a folder
tells it from an autoregressive model, so the name of the repository or the caller does.
"""

from redraft.models.families.base import Family, Fields, Known, decoder, llama_network, mask_id, named

MASK_ID = 811
"""A rare word of Llama's, trained as the mask, which config.json does not say."""


def reads(fields: Fields) -> Known:
    """DiffuLLaMA: Llama 2's network, masks, answers shifted by one; ask for it by name (Gong et al. 2410.17891)."""
    fields.refuse(attention_bias=False)
    network = llama_network(fields)
    return decoder(fields, network, mask_id(fields, network.vocab, MASK_ID), shift=True)


FAMILY = Family(
    "diffullama",
    lambda config: False,
    reads,
    named,
    decoding={"sampler": "ancestral", "temperature": 0.9, "top_p": 0.9, "steps": 64},
    under=("llama",),
)
