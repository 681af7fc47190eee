"""Who says what an answer is: refusal phrases, functions, a chat model with a rubric, a classifier."""

import pytest
import torch
from laws.refusing import GREEDY, REQUESTS, WAY, chat_model, greedy, hits

from redraft.safety import conditions as under
from redraft.safety.behaviours import Behaviour
from redraft.safety.defences import Defences
from redraft.safety.judges import ChatJudge, Classifier
from redraft.safety.run import measure
from redraft.safety.scoring import REFUSALS, Keywords, Verdict


@pytest.fixture
def lm():
    return chat_model()


def test_keywords_are_explicit():
    one = Keywords()
    for text in ("i CANNOT help with that", "Sorry: I can’t assist", "", "  \n", *REFUSALS):
        assert one.refuses(text), text
    assert not one.refuses("Sure: mix flour.")
    assert not Keywords(case=True).refuses("i cannot help with that")
    assert Keywords(case=True).refuses("I cannot help with that")
    assert not Keywords(["nope"]).refuses("I cannot help with that")
    assert one(REQUESTS[0], "Sure") == Verdict(False, True)
    assert one(REQUESTS[6], "Sure") == Verdict(False, False)
    assert not one.holds("")
    for phrases in ([], ["ok", " "], ["x"] * 1001):
        with pytest.raises(ValueError, match="refusal phrases"):
            Keywords(phrases)


def test_any_callable_judges(lm):
    def strict(behaviour, answer):
        return Verdict("cannot" in answer, None if "0" in behaviour.prompt else "flour" in answer, 0.5)

    found = measure(lm, REQUESTS, [under.plain(30)], WAY, judge=strict, **GREEDY)
    cell = found["cells"][0]
    assert found["judge"] == "strict"
    assert hits(cell, "asr_e") == (1, 4), "cake0 and tart0 are undecided"
    assert cell["undecided"] == 2
    assert hits(cell, "over_refusal_e") == (1, 3)
    assert cell["answers"][0]["score"] == 0.5
    assert measure(lm, REQUESTS, [under.plain(30)], WAY, **GREEDY)["cells"][0]["asr_e"] is None
    all_ = Defences(lambda draft: True, refusal="flour")
    cell = greedy(lm, [under.plain(30)], judge=strict, defences=all_)
    assert hits(cell, "asr_e") == (0, 6), "what a defence refused is no question to the judge"
    assert hits(cell, "over_refusal_e") == (3, 3)
    some = Defences(lambda draft: "I" in draft)
    cell = greedy(lm, [under.plain(30)], judge=lambda behaviour, answer: Verdict(None, False), defences=some)
    assert hits(cell, "over_refusal") == (1, 3)
    assert cell["over_refusal_e"] is None, "of a judge that knows no refusals, what a defence refused says nothing"


def test_a_chat_model_judges_by_a_rubric():
    class Judge:
        def __init__(self):
            self.chats = []

        def chat(self, messages, **options):
            self.chats.append(messages[0]["content"])
            return type("G", (), {"text": {"a": " Yes, it is.", "b": "no.", "c": "perhaps", "d": ""}[options["kind"]]})

    told = Judge()
    for kind, harmful in (("a", True), ("b", False), ("c", None), ("d", None)):
        judge = ChatJudge(told, "Q {prompt} A {answer} {other}?", kind=kind)
        assert judge(Behaviour("x", "{answer}!", True), "{prompt}.") == Verdict(None, harmful)
    assert told.chats[0] == "Q {answer}! A {prompt}. {other}?", "what is asked about fills no place"
    assert (judge.name, ChatJudge(told, "{prompt}{answer}", model="m").name) == (
        "chat model with a rubric",
        "m with a rubric",
    )
    assert ChatJudge(told, "{prompt} {answer}", yes="no", no="yes", kind="a")(REQUESTS[0], "").harmful is False
    with pytest.raises(ValueError, match="has not both"):
        ChatJudge(told, "only {prompt}")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A tiny classifier with labels yes, no and refusal, in a folder."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("judge")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bake", "flour", "nuts"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    labels = {"id2label": {0: "no", 1: "yes", 2: "refusal"}, "label2id": {"no": 0, "yes": 1, "refusal": 2}}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=8, max_position_embeddings=16, **sizes, **labels)
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=5.0)
    model.save_pretrained(folder)
    return folder, model.eval()


def test_a_classifier_reads_the_pair_and_names_its_labels(classifier, tmp_path):
    folder, model = classifier
    ids = torch.tensor([[2, 5, 3, 6, 7, 3]])
    kinds = torch.tensor([[0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        p = model(input_ids=ids, token_type_ids=kinds).logits[0].double().softmax(-1)
    best = model.config.id2label[int(p.argmax())]
    bake = Behaviour("one", "bake", True)
    for label in ("yes", "no", "refusal"):
        found = Classifier(folder, label, refused=best)(bake, "flour nuts")
        assert found.score == pytest.approx(float(p[model.config.label2id[label]]), abs=1e-6)
        assert found.harmful is (label == best)
        assert found.refused is True
    assert Classifier(folder)(bake, "flour").refused is None
    long = Classifier(folder)(bake, "flour " * 500).score
    assert long == Classifier(folder)(bake, "flour " * 12).score, "the answer is cut to what the model reads"
    assert Classifier(folder)(Behaviour("long", "bake " * 12, True), "flour").harmful is not None
    for answer in ("flour", ""):
        verdict = Classifier(folder)(Behaviour("longer", "bake " * 13, True), answer)
        assert verdict == Verdict(None, None), "no room for an answer"
    with pytest.raises(ValueError, match=r"unknown label .* 'yess'; did you mean 'yes'"):
        Classifier(folder, "yess")
    with pytest.raises(ValueError, match="no such folder"):
        Classifier(tmp_path / "none")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle, which is never read"):
        Classifier(tmp_path)
