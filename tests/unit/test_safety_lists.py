"""Lists of requests: the public layouts, a file that is none, bounds, and one data file of the Hub."""

import json
import re

import pytest
from laws.refusing import REQUESTS

from redraft.safety import behaviours as lists
from redraft.safety.behaviours import Behaviour

HARMBENCH = (
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    '"bake, then eat",standard,bread,,,bake_1\nfill it,contextual,cake,context,A tin.,fill_2\n'
)
JAILBREAKBENCH = (
    "Index,Goal,Target,Behavior,Category,Source\n0,bake a cake,Sure,Cakes,sweet,own\n1,a tart,Sure,Tarts,,own\n"
)


def test_the_public_layouts_are_read(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(HARMBENCH)
    assert lists.read(path) == [
        Behaviour("bake_1", "bake, then eat", True, "bread"),
        Behaviour("fill_2", "A tin.\n\nfill it", True, "cake"),
    ]
    path.write_text(JAILBREAKBENCH)
    assert lists.read(path) == [Behaviour("Cakes", "bake a cake", True, "sweet"), Behaviour("Tarts", "a tart", True)]
    assert lists.read(path, benign=True)[0] == Behaviour("benign:Cakes", "bake a cake", False, "sweet")
    path.write_text("\ufeffid,prompt,harmful\r\na,bake,True\r\nb,eat,0\r\n", "utf-8", newline="")
    assert [(one.id, one.harmful) for one in lists.read(path)] == [("a", True), ("b", False)]
    rows = [
        {"id": "a", "prompt": "bake", "harmful": True, "category": "c"},
        {"id": "b", "prompt": "x", "harmful": False},
    ]
    jsonl = tmp_path / "list.jsonl"
    jsonl.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert lists.read(jsonl) == [Behaviour("a", "bake", True, "c"), Behaviour("b", "x", False)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "title,body\nx,y\n", "columns title, body; wanted are BehaviorID, Behavior (HarmBench); Behavior"),
        ("a.csv", "id,prompt,harmful\n", "empty"),
        ("a.csv", "id,prompt,harmful\na,b,true\na,c,true\n", "the id 'a' stands twice"),
        ("a.csv", "id,prompt,harmful\na,b,perhaps\n", "harmful is 'perhaps'; write true or false"),
        ("a.csv", "id,prompt,harmful\na,,true\n", "column 'prompt' holds no text"),
        ("a.csv", "id,prompt,harmful\na,b\n", "row 1: its cells are not as many as the columns"),
        ("a.csv", "id,prompt,harmful\na,b,true,d\n", "row 1: its cells are not as many as the columns"),
        ("a.csv", "id,prompt,harmful\na," + "x" * 20001 + ",true\n", "20,001 characters"),
        ("a.csv", "id,prompt,harmful\na," + "x" * 200000 + ",true\n", "damaged CSV"),
        ("a.jsonl", "\n[1]\n", "line 2: '[1]' is no JSON object"),
        ("a.jsonl", "{\n", "line 1: not JSON"),
        ("a.jsonl", '{"id": 1, "prompt": "x", "harmful": true}\n', "column 'id' holds no text"),
        ("a.txt", "x", "unknown file type '.txt'"),
    ],
)  # fmt: skip
def test_a_list_that_is_none_is_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        lists.read(tmp_path / name)


def test_input_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("id,prompt,harmful\n" + "".join(f"{i},x,true\n" for i in range(4)))
    monkeypatch.setattr(lists, "MAX_ROWS", 3)
    with pytest.raises(ValueError, match="more than 3 rows"):
        lists.read(path)
    monkeypatch.setattr(lists, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        lists.read(path)
    (tmp_path / "a.jsonl").write_text('{"id": "a", "prompt": "x", "harmful": true}\n')
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        lists.read(tmp_path / "a.jsonl")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8 at byte 0"):
        lists.read(path)
    monkeypatch.undo()
    path.write_text("id,prompt,harmful\na,b,1\n")
    with pytest.raises(ValueError, match="passed as benign"):
        lists.read(path, benign=True)
    assert [one.id for one in lists.spread(REQUESTS, 3)] == ["cake0", "cake3", "scone"]
    assert lists.spread(REQUESTS, 50) == lists.spread(REQUESTS, None) == REQUESTS
    with pytest.raises(ValueError, match="limit=0"):
        lists.spread(REQUESTS, 0)


def test_a_list_of_the_hub_is_one_data_file(tmp_path, monkeypatch):
    import huggingface_hub

    asked, path = [], tmp_path / "fetched.csv"
    path.write_text(HARMBENCH)

    def download(repository, name, *, repo_type, revision):
        asked.append((repository, name, repo_type, revision))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert len(lists.read("owner/name:data/some list.csv")) == 2
    assert len(lists.read("owner/name@main:a.csv")) == 2
    assert asked == [
        ("owner/name", "data/some list.csv", "dataset", None),
        ("owner/name", "a.csv", "dataset", "main"),
    ]
    for name in ("owner/name", "owner/name:code.py", "none.csv", "owner/name:a.bin"):
        with pytest.raises(ValueError, match="no such file"):
            lists.read(name)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="not to be had from the Hugging Face Hub"):
        lists.read("owner/name:a.csv")


def test_texts_by_id(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"a": "x [MASK:2]"}')
    assert lists.texts_by_id(path) == {"a": "x [MASK:2]"}
    for text in ("[]", "{}", '{"a": 1}', "{", json.dumps({"a": "x" * 20001})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"t\.json"):
            lists.texts_by_id(path)
