"""iLLaDA-8B (Base, Instruct): LLaDA again, larger vocabulary, tied embeddings (2606.25331).

Its config.json has Llama's words, and names no mask. What its files call the tensors is not established: those of
Llama are expected, and whatever else is there is refused, as always, before anything is read.
"""

from redraft.models.families.base import Family, Fields, Known, decoder, llama_network, mask_id, named, of_type

MASK, MASK_ID = "<[MASK]>", 5


def reads(fields: Fields) -> Known:
    """iLLaDA-8B, as far as its layout is Llama's: masks, full attention, tied embeddings (2606.25331)."""
    fields.refuse(attention_bias=False)
    network = llama_network(fields)
    return decoder(fields, network, mask_id(fields, network.vocab, MASK_ID, MASK))


FAMILY = Family(
    "illada",
    of_type("illada"),
    reads,
    named,
    decoding={"sampler": "low_confidence", "temperature": 0.0, "length": 128, "block": 32, "stop": True},
    under=("llada", "llama"),
)
