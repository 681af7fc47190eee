"""By what texts are judged where nobody names a judge, and the human text that is measured beside them."""

from pathlib import Path

from redraft.data import Packed, load_text, pack, read_documents, split_held_out
from redraft.data.provenance import SHORT, digest
from redraft.evaluation import judges
from redraft.evaluation.judges import Judge
from redraft.evaluation.ngram import NGram
from redraft.lm import LM

HELD_OUT = 0.1
"""The share of a text that a judge is not fitted on, where we fit one: the human text beside it is of that share."""


def yardstick(
    lm: LM, source: str | Path | None, judge: str | Judge | None = None, text_field: str = "text"
) -> tuple[Judge | None, Packed | None]:
    """The judge that ``frontier`` is to ask, and human text of the model's context from ``source``, None without one.

    A judge that is given, or named, is taken. Else it is a character 5-gram fitted on nine tenths of the text, and the
    human text is the other tenth: text that the judge was fitted on would look better than any other can. A model of
    the toy language has its grammar, and needs no judge.

    Errors: ``ValueError`` without judge and text, for a text too short for either, and those of ``judges.get``.
    """
    toy = lm.tokenizer.kind == "toy"
    if judge is not None or toy:
        asked = None if judge is None else judges.get(judge, lm.device)
        source = "toy" if source is None and toy else source
        return asked, None if source is None else of_people(lm, source, text_field)
    if source is None:
        raise ValueError("nothing to judge texts by: pass --data FILE to fit a judge on, or a --judge")
    documents = list(read_documents(source, text_field))
    fitted, kept = split_held_out(documents, HELD_OUT)
    name = f"nine tenths of {Path(source).name} (SHA-256 {digest(documents)[:SHORT]})"
    rows = pack(lm.tokenizer.encode_batch(kept), lm.context, lm.tokenizer.eos_id, keep_tail=True)
    return NGram(fitted, of=name), _whole(rows)


def of_people(lm: LM, source: str | Path, text_field: str = "text") -> Packed | None:
    """Human text in rows of the model's context; None where it does not fill one, for shorter is not comparable."""
    return _whole(load_text(source, lm.tokenizer, lm.context, text_field))


def _whole(rows: Packed) -> Packed | None:
    return rows if rows.valid is None or bool(rows.valid.all(1).any()) else None
