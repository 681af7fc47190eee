"""A trace on disk: JSON there and back, one page that nothing can be smuggled into, and two kinds of pictures."""

import base64
import copy
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.trace import Frame, Record, Row, load, stored
from redraft.trace.html import page
from redraft.trace.picture import SHOWN, _figure, save_png, save_svg
from redraft.trace.record import MARKS, marks
from redraft.trace.stored import from_dict, to_dict

NASTY = [
    "</script><img src=x onerror=alert(1)>",
    "\"quotes' & <b>",
    "\u2028line\u2029",
    "<!--<script>",
    "\x1b[31m",
    "$x^2$",
]
COST = {
    "nfe": 3,
    "positions": 12,
    "cached": 0,
    "written": 4,
    "tokens_per_forward": 4 / 3,
    "seconds": {"model": 0.25, "callback": 0.0, "rest": -1e-9},
}


def record(words=("we", "are", "not", "here"), mask=9, title="redraft generate") -> Record:
    """Two texts of four positions: one written, taken back and written again, the other after a given token."""
    texts = dict(enumerate(words)) | {mask: "[MASK]"}
    found = Record(texts, mask=mask, joint=" ", title=title, cost=dict(COST))
    m = mask
    for number, (drafts, known) in enumerate(
        [([[0, m, m, m], [0, 1, m, 2], [m, 1, 3, 1], [0, 1, 3, 1]], ()), ([[2, m, m, 0], [2, 1, 1, 0]], (0,))]
    ):
        row, old = Row(number, seed=7 + number, length=4, calls=len(drafts)), None
        for k, ids in enumerate(drafts):
            origin = [None] * 4 if old is None else list(range(4))
            given_ = [i in known for i in range(4)]
            sure = tuple(None if i == m else round(0.2 * (j + 1), 4) for j, i in enumerate(ids))
            doubt = tuple(0.5 + j for j in range(4))
            what = marks(old, ids, origin, given_, mask)
            row.frames.append(Frame("step", k, 4, 1 - k / 4, 0.75 - k / 4, k + 1, tuple(ids), sure, doubt, what))
            old = ids
        found.rows[number] = row
    return found


def test_json_there_and_back(tmp_path):
    one = record()
    one.save(tmp_path / "x.json")
    assert load(tmp_path / "x.json") == one
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"], "written beside, and renamed"
    found = json.loads((tmp_path / "x.json").read_text("ascii"))
    assert (found["format"], found["version"]) == ("redraft trace", 1)
    assert found["rows"][0]["frames"][2]["marks"] == "TKWR"


NUMBERS = st.none() | st.floats(0, 1)


@st.composite
def records(draw):
    texts = draw(st.dictionaries(st.integers(0, 2**40), st.text(max_size=8), min_size=1, max_size=6))
    ids, rows = st.sampled_from(sorted(texts)), {}
    for number in draw(st.sets(st.integers(0, 9), max_size=3)):
        row = Row(number, before=draw(st.none() | st.lists(ids, max_size=4).map(tuple)))
        row.seed, row.length = draw(st.none() | st.integers(-(2**63), 2**63)), draw(st.none() | st.integers(0, 99))
        for _ in range(draw(st.integers(0, 3))):
            width = draw(st.integers(0, 5))
            entropy = draw(st.tuples(*[st.none() | st.floats(0, 20)] * width))
            sure = draw(st.tuples(*[NUMBERS] * width))
            row.frames.append(
                Frame(
                    draw(st.sampled_from(["step", "callback", "end"])),
                    draw(st.integers(0, 999)),
                    draw(st.integers(0, 999)),
                    *draw(st.tuples(st.floats(0, 1), st.floats(0, 1))),
                    draw(st.integers(0, 999)),
                    draw(st.tuples(*[ids] * width)),
                    tuple(p if h is not None else None for p, h in zip(sure, entropy, strict=True)),
                    entropy,
                    draw(st.tuples(*[st.sampled_from(MARKS)] * width)),
                )
            )
        rows[number] = row
    options = {"title": draw(st.text(max_size=9)), "cut": draw(st.booleans()), "left_out": draw(st.integers(0, 9))}
    cost = draw(st.none() | st.just(dict(COST)))
    return Record(texts, draw(st.none() | ids), rows=rows, cost=cost, approximate=draw(st.booleans()), **options)


@settings(max_examples=80, deadline=None)
@given(records())
def test_any_record_comes_back(one):
    assert from_dict(json.loads(json.dumps(to_dict(one), allow_nan=False))) == one


def changed(path, value):
    """The dictionary of a record with one entry changed; deleted for ``...``."""
    top = copy.deepcopy(to_dict(record()))
    at = top
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return top


FRAME = ("rows", 0, "frames", 1)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("format",), "gif", "format: 'gif'"),
        (("version",), 2, "version: 2"),
        (("version",), True, "version: True"),
        (("title",), ..., "title: missing"),
        (("title",), 3, "title: 3 is no text"),
        (("title",), "x" * 2000, "title: 'xxx"),
        (("more",), 3, "'more': unknown; expected are format"),
        (("mask",), -1, "mask: -1 is negative"),
        (("cut",), 0, "cut: 0 is neither"),
        (("texts", 1), [1], "texts[1]: [1] is no pair"),
        (("texts", 1), [0, "again"], "texts: an id stands there twice"),
        (("texts", 1, 1), None, "texts[1][1]: None"),
        (("cost", "nfe"), 1.5, "cost.nfe: 1.5 is no integer"),
        (("cost", "more"), 1, "cost.'more': unknown"),
        (("cost", "seconds", "model"), "1", "cost.seconds.model: '1'"),
        (("cost", "seconds"), [], "cost.seconds: [] is no object"),
        (("rows",), {}, "rows: {} is no list"),
        (("rows", 1, "number"), 0, "rows: number 0 stands there twice"),
        (("rows", 1, "seed"), 2**70, "rows[1].seed"),
        (("rows", 0, "before"), [0, "1"], "rows[0].before[1]: '1'"),
        ((*FRAME, "cause"), "magic", "rows[0].frames[1].cause: 'magic' is none of step, callback, end"),
        ((*FRAME, "t"), 1.5, "rows[0].frames[1].t: 1.5 is above 1"),
        ((*FRAME, "s"), "0", "rows[0].frames[1].s: '0'"),
        ((*FRAME, "nfe"), True, "rows[0].frames[1].nfe: True"),
        ((*FRAME, "ids", 2), 77, "rows[0].frames[1].ids: id 77 has no entry in texts"),
        ((*FRAME, "ids", 2), False, "rows[0].frames[1].ids[2]: False"),
        ((*FRAME, "marks"), "KW", "rows[0].frames[1].marks: 'KW' is no text of 4 letters"),
        ((*FRAME, "marks"), "KWMx", "rows[0].frames[1].marks: 'x' is none of GMWRTK"),
        ((*FRAME, "asked"), [0, 1, 3, 2], "rows[0].frames[1].asked: positions below 4 in ascending"),
        ((*FRAME, "asked"), [0, 1, 2, 4], "rows[0].frames[1].asked: positions below 4"),
        ((*FRAME, "confidence"), [1], "rows[0].frames[1].confidence: 1 numbers for 4"),
        ((*FRAME, "confidence", 0), 1.1, "rows[0].frames[1].confidence[0]: 1.1 is above 1"),
        ((*FRAME, "entropy", 0), None, "rows[0].frames[1].entropy[0]: None is no finite"),
        ((*FRAME, "entropy", 0), float("inf"), "rows[0].frames[1].entropy[0]: inf"),
    ],
    ids=str,
)
def test_a_damaged_record_names_the_key(path, value, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        from_dict(changed(path, value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is not JSON"),
        ("[1, 2", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ('{"format": NaN}', "NaN is no JSON number"),
        ('{"format": 1, "format": 2}', "a key stands twice"),
        ("\udcff", "it is not JSON"),
        ("7", "the whole: 7 is no object"),
        ("{}", "format: None"),
    ],
    ids=range(8),
)
def test_a_damaged_file_is_refused(text, said, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text, "utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    record().save(path)
    monkeypatch.setattr(stored, "POSITIONS", 23)
    with pytest.raises(ValueError, match="24 positions, more than the 23"):
        load(path)
    monkeypatch.setattr(stored, "BYTES", 100)
    with pytest.raises(ValueError, match="more than the 100"):
        load(path)


def test_reading_needs_no_torch(tmp_path):
    record().save(tmp_path / "x.json")
    program = f"""
import sys
from redraft.trace import load, replay
from rich.console import Console
one = load({str(tmp_path / "x.json")!r})
replay(one, Console())
one.save({str(tmp_path / "x.html")!r})
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "final" not in done.stdout
    assert "step 4/4  t=0.00  we are here are" in done.stdout


# ---------------------------------------------------------------------------------------------------------------- page


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text in each kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def test_the_page_stands_alone():
    text = page(record())
    found = Page(text)
    assert not [attrs for _, attrs in found.tags if {"src", "href", "onclick"} & attrs.keys()]
    assert "http" not in text.replace("http-equiv", "")
    script, style = found.texts["script"][1], found.texts["style"][0]
    policy = next(attrs["content"] for tag, attrs in found.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy.startswith("default-src 'none';")
    for name, content in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert len(text) < 20_000
    assert "prefers-color-scheme: dark" in style
    told = [attrs.get("id") for _, attrs in found.tags]
    assert {"play", "at", "row", "by", "draft", "told", "legend"} <= set(told)


def test_the_page_holds_the_record_and_the_final_texts_without_scripts():
    found = Page(page(record()))
    data = json.loads(found.texts["script"][0])
    assert [len(row["frames"]) for row in data["rows"]] == [4, 2]
    assert data["rows"][0]["frames"][0]["label"] == "step 1/4"
    assert "3 denoiser calls, 1.33 tokens per forward" in data["rows"][0]["summary"]
    grown, last = record(), record().rows[0].frames[-1]
    sure, what = (None,) * 5, ("written", *["kept"] * 4)
    grown.rows[0].frames.append(Frame("step", 4, 5, 0, 0, 5, (3, *last.ids), sure, sure, what))
    frames = json.loads(Page(page(grown)).texts["script"][0])["rows"][0]["frames"]
    assert [frame.get("origin") for frame in frames] == [None] * 4 + [[None, 0, 1, 2, 3]], "where its positions were"
    static = page(record()).split("<noscript>")[1].split("</noscript>")[0]
    assert "we are here are" in static
    assert "not are are we" in static


@pytest.mark.parametrize("title", ["redraft", *NASTY])
def test_what_tokens_spell_is_never_markup(title):
    one = record(words=NASTY, title=title)
    for row in one.rows.values():  # so that each is in the final text
        last = row.frames[-1]
        row.frames[-1] = Frame(*(getattr(last, name) for name in ("cause", "index", "steps", "t", "s", "nfe")),
                               tuple(range(6)), (0.5,) * 6, (0.5,) * 6, ("rewritten",) * 6)  # fmt: skip
    text = page(one)
    plain = page(record())
    assert [tag for tag, _ in Page(text).tags] == [tag for tag, _ in Page(plain).tags], "no element more"
    assert "\u2028" not in text.replace(html.escape(title), "")
    data = json.loads(Page(text).texts["script"][0])
    words = dict(data["texts"])
    assert [words[i] for i in range(6)] == [*NASTY[:2], "↵line↵", NASTY[3], "␛[31m", NASTY[5]]
    assert html.escape(NASTY[0]) in text.split("<noscript>")[1]
    raw = text.split('id="data">')[1].split("</script>")[0]
    assert not {"<", ">", "&", "\u2028"} & set(raw)
    assert raw.isascii()


BROWSER = """
class Node {
  constructor() { Object.assign(this, { all: [], at: {}, on: {}, vars: {}, textContent: "", value: "0" }); }
  get style() { return { setProperty: (name, value) => { this.vars[name] = value; } }; }
  append(...more) { this.all.push(...more); }
  replaceChildren(...more) { this.all = more.flatMap((one) => one.all && !one.textContent ? one.all : [one]); }
  addEventListener(kind, f) { this.on[kind] = f; }
  setAttribute(name, value) { this.at[name] = value; }
}
const nodes = new Map(), ticks = [];
global.Option = class extends Node {};
global.document = {
  createElement: () => new Node(), createDocumentFragment: () => new Node(),
  getElementById: (id) => nodes.get(id) ?? nodes.set(id, new Node()).get(id),
};
global.setInterval = (f) => ticks.push(f);
global.clearInterval = () => { ticks.length = 0; };
const find = document.getElementById, told = [];
find("data").textContent = DATA;
find("by").value = "mark";
const tell = () => told.push({ draft: find("draft").all.map((one) => one.textContent ?? one).join(""),
  classes: find("draft").all.map((one) => one.className ?? "").join("|"), head: find("head").textContent,
  shares: find("draft").all.map((one) => one.vars?.["--share"]).filter((one) => one !== undefined),
  titles: find("draft").all.map((one) => one.title).filter(Boolean), cost: find("cost").textContent });
"""
PLAY = """
tell();
find("at").value = 0; find("at").on.input(); tell();
find("by").value = "sure"; find("at").value = 3; find("by").on.change(); tell();
find("by").value = "wrote"; find("by").on.change(); tell();
find("by").value = "mark"; find("row").value = 1; find("row").on.change(); tell();
find("play").on.click(); tell(); ticks[0](); tell();
console.log(JSON.stringify(told));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_shows_what_the_record_says(tmp_path):
    """The page's script, run on a stand-in for a browser: what it shows is what ``Row.standing`` says."""
    one = record()
    one.rows[0].before = (0, 1)  # the first frame is longer: where its positions were is told
    data, script = Page(page(one)).texts["script"]
    # a value of the page is text; here numbers are compared as the page compares its own
    (tmp_path / "x.js").write_text(f"const DATA = {json.dumps(data)};{BROWSER}{script}{PLAY}", "utf-8")
    done = subprocess.run(["node", str(tmp_path / "x.js")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    end, first, sure, wrote, second, begun, ticked = json.loads(done.stdout)
    assert end["draft"] == "we are here are"
    assert end["classes"] == "token written||token kept||token kept||token kept"
    assert first["draft"] == "we [MASK] [MASK] [MASK]".replace("[MASK]", "░")
    assert first["head"] == "step 1/4 · t = 0.75 · 1 calls · 1 written"
    standing = one.rows[0].standing()[3]
    assert sure["shares"] == list(standing.sure)
    assert wrote["shares"] == [i / 3 for i in standing.wrote if i >= 0]
    for i, title in enumerate(end["titles"]):
        assert f"position {i} · " in title
        assert f"p {standing.sure[i]} · entropy {0.5 + i} nats" in title
        assert title.endswith(f"stands since step {standing.wrote[i] + 1}/4")
    assert second["draft"] == "not are are we"
    assert second["classes"].startswith("token given")
    assert second["cost"] == one.summary(1)
    assert (begun["head"][:8], ticked["head"][:8]) == ("step 1/4", "step 2/4")


# ------------------------------------------------------------------------------------------------------------ pictures


def test_a_heat_map(tmp_path):
    pytest.importorskip("matplotlib")
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    one = record(words=["$we", "漢字", "^{", "here"])
    one.save(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    save_png(one, tmp_path / "y.png", row=1, colour="step")
    assert (tmp_path / "y.png").read_bytes() != (tmp_path / "x.png").read_bytes()
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not __import__("matplotlib.pyplot").pyplot.get_fignums()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "y.png"]


def test_what_a_heat_map_shows():
    pytest.importorskip("matplotlib")
    one = record()
    figure = _figure(one, one.rows[0], "confidence")
    axes = figure.axes[0]
    cells = axes.images[1].get_array()
    assert cells.shape == (4, 4)
    sure = one.rows[0].standing()[3].sure
    assert cells[3].tolist() == pytest.approx(list(sure))
    assert bool(cells.mask[0, 1]), "a mask has no confidence"
    marked = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert marked == {"written again": [(3, 2)], "taken back": [(0, 2)]}
    assert "3 denoiser calls, 1.33 tokens per forward" in axes.get_xlabel()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3", "4"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["we", "are", "here", "are"]
    given_ = _figure(one, one.rows[1], "step").axes[0]
    assert given_.images[0].get_array()[:, 0].tolist() == [1, 1]
    assert given_.images[1].get_array()[1].tolist() == [None, 2, 2, 1]
    for wrong, said in ((("entropy", 0), "'entropy'"), (("step", 5), "text 6")):
        with pytest.raises(ValueError, match=said):
            save_png(one, "x.png", row=wrong[1], colour=wrong[0])
    one.rows[1].frames.clear()
    with pytest.raises(ValueError, match="no frames"):
        save_png(one, "x.png", row=1)


def test_a_heat_map_needs_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr("redraft.drawing.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"redraft\[viz\]"):
        record().save(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.gif", "x", "nowhere/x.json", "."])
def test_files_that_cannot_be(name, tmp_path):
    with pytest.raises(ValueError, match=re.escape(name)):
        record().save(tmp_path / name)


def test_nothing_to_show():
    with pytest.raises(ValueError, match="no frames"):
        page(Record({}))


@pytest.mark.parametrize("steps", [1, 3, SHOWN, 100])
def test_the_drafts_are_svg(steps, tmp_path):
    one = record()
    first = one.rows[0].frames[0]
    one.rows[0].frames = [first] * steps
    save_svg(one, tmp_path / "draft.svg", title="a <title>")
    text = (tmp_path / "draft.svg").read_text("utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "&lt;title&gt;" in text
    shown = "".join(ElementTree.fromstring(text).itertext()).count("t\xa0=\xa0")
    assert shown == min(steps, SHOWN)
    one.save(tmp_path / "draft.svg", row=1)
    assert "are" in (tmp_path / "draft.svg").read_text("utf-8")
