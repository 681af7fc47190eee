"""Text to rows of ids: sources, embedded corpora, tokenizers and packing. Needs neither torch nor transformers."""

from redraft.data import toy
from redraft.data.corpora import CORPORA
from redraft.data.packing import Data, DataConfig, Packed, indices, load_data, load_text, order, pack
from redraft.data.sources import read_documents, split_held_out
from redraft.data.templates import parse_template
from redraft.data.tokenizers import Tokenizer, build_tokenizer, pretrained

__all__ = [
    "CORPORA",
    "Data",
    "DataConfig",
    "Packed",
    "Tokenizer",
    "build_tokenizer",
    "indices",
    "load_data",
    "load_text",
    "order",
    "pack",
    "parse_template",
    "pretrained",
    "read_documents",
    "split_held_out",
    "toy",
]
