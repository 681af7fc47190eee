"""``redraft generate``, ``infill`` and ``edit``, as a user runs them."""

import json
import os
import signal
from xml.etree import ElementTree

import pytest

import redraft
from redraft.trace import Trace, load

PROCESSES = ["masked", "uniform", "hybrid", "gaussian"]


def test_generate_prints_what_the_api_writes(run, models):
    done = run("generate", models(), "--steps", 4, "--seed", 3)
    assert done.exit_code == 0
    assert done.stdout == redraft.load(models()).generate(steps=4, seed=3).text + "\n"
    assert "denoiser calls" in done.stderr


def test_generate_several(run, models):
    done = run("generate", models(), "--num", 3, "--steps", 4)
    assert len(done.stdout.splitlines()) == 3
    assert "-- 3 of 3, seed " in done.stderr


@pytest.mark.parametrize("name", PROCESSES)
def test_json_is_one_object_and_nothing_else(name, run, models):
    done = run("generate", models(name), "--num", 2, "--steps", 4, "--json", "--show")
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert [set(sample) for sample in found["samples"]] == [{"text", "seed"}] * 2
    assert 1 <= found["nfe"] <= 5
    assert found["unigram_entropy"] >= 0
    assert "step 1/4  t=0.75" in done.stderr


def test_a_seed_decides_the_text(run, models):
    def text(seed):
        found = json.loads(run("generate", models("uniform", "bytes"), "--steps", 4, "--seed", seed, "--json").stdout)
        del found["cost"]["seconds"]  # all else is the same again
        return found

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_prompt_stays_and_brackets_are_text(run, models):
    prompt = "[b]sea[/b] [MASK] é"
    done = run("generate", models("masked", "bytes"), "--prompt", prompt, "--steps", 2, "--json")
    assert json.loads(done.stdout)["samples"][0]["text"].startswith(prompt)
    done = run("generate", models("masked", "bytes"), "--prompt", "[b]sea[/b]", "--steps", 2, "--show", "--length", 4)
    assert done.stdout.count("[b]sea[/b]") == 3, "two steps and the text"


def test_greedy_and_samplers(run, models):
    for sampler in ("ancestral", "confidence", "left_to_right"):
        args = ["generate", models(), "--sampler", sampler, "--temperature", 0, "--steps", 6, "--length", 6, "--json"]
        assert run(*args).exit_code == 0


@pytest.mark.parametrize("name", PROCESSES)
def test_infill_keeps_the_rest(name, run, models):
    done = run("infill", models(name, "bytes"), "a[red][MASK:3]z", "--num", 2, "--steps", 3, "--json")
    texts = [sample["text"] for sample in json.loads(done.stdout)["samples"]]
    assert len(texts) == 2
    assert all(text.startswith("a[red]") and text.endswith("z") for text in texts)


def test_infill_takes_a_written_mask_as_text(run, models):
    done = run("infill", models("masked", "bytes"), r"\[MASK] [MASK]", "--steps", 1)
    assert done.stdout.startswith("[MASK] ")


def test_trace_shows_every_step_before_the_text(run, models):
    done = run("infill", models(), "our [MASK] is [MASK] dog", "--steps", 5, "--show")
    *steps, text = done.stdout.splitlines()
    assert [line.split()[1] for line in steps] == [f"{i}/5" for i in range(1, len(steps) + 1)]
    assert all("our" in line and "is" in line for line in steps)
    assert text.startswith("our ")


@pytest.mark.parametrize("name", PROCESSES)
def test_a_trace_is_saved_and_replayed(name, run, models, tmp_path):
    done = run("generate", models(name), "--steps", 3, "--num", 2, "--seed", 1, "--trace", "draft.json")
    assert done.exit_code == 0, done.stderr
    assert "step 1/3" not in done.output, "a file was asked for, not a show"
    record = load(tmp_path / "draft.json")
    written = redraft.load(models(name)).generate(steps=3, num=2, seed=1)
    for number, row in record.rows.items():
        assert list(row.frames[-1].ids) == written.tokens[number].tolist()
    assert record.cost["nfe"] == written.samples.nfe
    shown = run("replay", "draft.json", "--row", 2).stdout
    assert shown.startswith("step 1/3  t=0.67")
    assert f"{written.samples.nfe} denoiser calls" in shown
    for ending in ("html", "png"):
        assert run("infill", models(name), "our [MASK]", "--steps", 2, "--trace", f"x.{ending}").exit_code == 0
        assert (tmp_path / f"x.{ending}").stat().st_size > 1000
    run("edit", models(name), "our dog is your friend s", "--steps", 2, "--trace", "edit.json", "--show")
    assert load(tmp_path / "edit.json").rows[0].before is not None


@pytest.mark.parametrize("name", PROCESSES)
def test_svg(name, run, models, tmp_path):
    done = run("generate", models(name), "--steps", 3, "--svg", "draft.svg")
    assert done.exit_code == 0
    assert "step 1/3" not in done.output, "a picture was asked for, not a trace"
    assert ElementTree.parse(tmp_path / "draft.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("name", PROCESSES)
def test_edit_prints_what_the_api_writes(name, run, models):
    text = "an [MASK] é"
    done = run("edit", models(name, "bytes"), text, "--strength", 0.4, "--steps", 3, "--seed", 2, "--json")
    written = redraft.load(models(name, "bytes")).edit(text, strength=0.4, steps=3, seed=2)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["samples"] == written.to_dict()["samples"]
    same = run("edit", models(name, "bytes"), text, "--strength", 0)
    assert same.stdout == text + "\n"
    assert "0 denoiser calls" in same.stderr


def test_a_trace_of_an_edit_marks_what_changed(run, models, tmp_path):
    done = run("edit", models(), "our dog is your friend s", "--steps", 3, "--show", "--svg", "draft.svg")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith("step 1/3  t=0.33")
    assert ElementTree.parse(tmp_path / "draft.svg").getroot().tag.endswith("svg")
    lm = redraft.load(models())
    ids = lm.encode("our dog is your friend s")
    trace = Trace(lm, before=ids)
    lm.edit("our dog is your friend s", strength=0.3, steps=3, seed=1, callback=trace)
    first = trace.frames[0]
    assert {mark for mark, now, was in zip(first.marks, first.ids, ids, strict=True) if now == was} == {"kept"}
    run("edit", models(), "our dog is your friend s", "--strength", 0, "--show", "--svg", "same.svg")
    assert (tmp_path / "same.svg").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["our dog", "--strength", "1.5"], ["strength=1.5"]),
        (["our dog", "--strength", "much"], ["--strength"]),
        (["our cta"], ["'cta'", "'cat'"]),
        (["our dog", "--select", "blue"], ["'blue'", "'bleu'"]),
        (["our dog", "--given", "told"], ["--given"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_edit_refuses(options, words, refused, models):
    refused("edit", models(), *options, words=tuple(words))


def test_a_text_longer_than_the_context_is_not_edited(refused, models):
    refused("edit", models("masked", "bytes"), "x" * 25, words=("25 tokens", "24"))


def test_select_prints_one_of_many(run, models):
    args = [models(), "--num", 6, "--steps", 3, "--seed", 1]
    drawn = redraft.load(models()).generate(num=6, steps=3, seed=1)
    for gain in ("bleu", "agreement"):
        done = run("generate", *args, "--select", gain)
        assert done.stdout == drawn.select(gain).text + "\n"
        assert f"of 6, mean {gain}" in done.stderr
    found = json.loads(run("generate", *args, "--select", "chrf", "--json").stdout)
    assert len(found["samples"]) == 1
    assert found["choice"]["count"] == 6
    edited = run("edit", models(), "our dog", "--num", 3, "--steps", 2, "--select", "edits")
    assert edited.stdout.count("\n") == 1


def test_given_and_resample_are_options_of_what_has_gaps(run, models, refused):
    def infilled(*options):
        done = run("infill", models("gaussian", "bytes"), "a[MASK:6]z", "--steps", 3, "--json", *options)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    texts = {infilled("--given", way)["samples"][0]["text"] for way in ("noised", "clean", "told")}
    assert len(texts) > 1
    assert infilled("--resample", 2)["nfe"] == 10
    assert run("generate", models("gaussian"), "--prompt", "our", "--given", "told", "--steps", 2).exit_code == 0
    refused("infill", models(), "our [MASK]", "--given", "told", words=("given='told'", "masked", "leave it out"))
    refused("infill", models("gaussian"), "our [MASK]", "--given", "tolt", words=("'tolt'", "'told'"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sampler", "ancestrl"], ["'ancestrl'", "'ancestral'"]),
        (["--steps", "0"], ["steps=0"]),
        (["--steps", "many"], ["--steps"]),
        (["--num", "0"], ["num=0"]),
        (["--length", "7"], ["7", "6 positions"]),
        (["--length", "0"], ["0 to write"]),
        (["--temperature", "-1"], ["temperature=-1"]),
        (["--prompt", "our cta"], ["'cta'", "'cat'"]),
        (["--prompt", "we we we we we we"], ["6 tokens"]),
        (["--svg", "nowhere/x.svg"], ["nowhere/x.svg"]),
        (["--svg", "."], ["'.'"]),
        (["--trace", "x.gif"], ["--trace", "x.gif", ".json", "--show"]),
        (["--trace", "--steps"], ["--trace", "--show"]),
        (["--trace", "nowhere/x.json"], ["nowhere/x.json"]),
        (["--device", "gpu"], ["'gpu'"]),
        (["--tempreture", "1"], ["--tempreture", "--temperature"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_generate_refuses(options, words, refused, models):
    refused("generate", models(), *options, words=tuple(words))


@pytest.mark.parametrize(
    ("text", "word"),
    [("our cat", "no [MASK]"), ("[MASK:0]", "[MASK:0]"), ("[MASK:x]", "[MASK:x]"), ("[MASK:7]", "7 units")],
)
def test_infill_refuses(text, word, refused, models):
    refused("infill", models(), text, words=(word,))


def test_confidence_needs_masks(refused, models):
    refused("generate", models("uniform"), "--sampler", "confidence", words=("uniform", "'ancestral'"))


def test_an_interrupt_is_a_clean_stop(run, models, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trace, "__call__", interrupt)
    done = run("generate", models(), "--show")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "stopped\n")


def test_a_real_interrupt(spawn, models):
    with spawn("generate", models("uniform", "bytes"), "--steps", 1_000_000, "--show") as process:
        assert process.stdout.readline().startswith("step 1/1000000")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "stopped\n")


def test_a_reader_that_leaves_is_no_error(spawn, models):
    with spawn("generate", models("uniform", "bytes"), "--steps", 3000, "--show") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1


def test_a_narrow_encoding_is_no_error(spawn, models):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with spawn("infill", models("masked", "bytes"), "é[MASK]", "--steps", 1, "--show", env=env) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith("step 1/1  t=0.00")


RULE = ["--sampler", "low_confidence", "--num", 4]


@pytest.mark.parametrize(
    "option",
    [
        ("--top-k", 1),
        ("--repetition", 5),
        ("--ban", "^", "--ban", "i"),
        ("--stop",),
        ("--stop", "--min-length", 12),
        ("--block", 4),
        ("--regex", "[a-z ]*"),
        ("--choice", "twenty-four letters long", "--choice", "just as long as the other"),
        ("--grow",),
    ],
)
def test_every_option_of_writing_matters(option, run, models):
    def texts(*more):
        # the end of a text is one byte's worth among 259: many texts, nearly even, see some
        rule = [] if "--grow" in option else ["--num", 40, "--temperature", 9] if "--stop" in option else RULE
        done = run("generate", models("masked", "bytes"), *rule, *more, "--json")
        assert done.exit_code == 0, done.stderr
        return [one["text"] for one in json.loads(done.stdout)["samples"]]

    base = ("--stop",) if "--min-length" in option else ()
    assert texts(*option) != texts(*base)


def test_caches_are_named_approximate(run, models):
    args = ["generate", models("masked", "bytes"), *RULE, "--block", 8, "--json"]
    exact, dual = (json.loads(run(*args, *more).stdout) for more in ((), ("--cache", "dual")))
    renewed = json.loads(run(*args, "--cache", "dual", "--refresh", 1).stdout)
    assert (exact["approximate"], dual["approximate"]) == (False, True)
    assert exact["positions"] == renewed["positions"] > dual["positions"]
    assert exact["samples"] == renewed["samples"]


def test_constraints_from_files(run, models, tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    (tmp_path / "brackets.lark").write_text('start: ("(" start ")")*')
    for option, name, letters in (
        ("--json-schema", "schema.json", "-0123456789"),
        ("--grammar", "brackets.lark", "()"),
    ):
        args = ["generate", models("masked", "bytes"), *RULE, option, tmp_path / name, "--length", 8, "--json"]
        done = run(*args)
        assert done.exit_code == 0, done.stderr
        assert all(set(one["text"]) <= set(letters) for one in json.loads(done.stdout)["samples"])
    done = run(*args, "--regex", "a")
    assert (done.exit_code, done.stderr) == (2, "error: --regex and --grammar are constraints each: pass one\n")


def test_a_passage_is_redrafted(run, models):
    done = run("edit", models("masked", "bytes"), "the quick brown", "--span", "4:9", "--strength", 1, "--seed", 1)
    assert done.stdout.startswith("the ")
    assert done.stdout.rstrip("\n").endswith(" brown")
    assert done.stdout != "the quick brown\n"
    done = run("edit", models("masked", "bytes"), "the quick brown", "--doubt", 0.2, "--json")
    assert len(json.loads(done.stdout)["samples"]) == 1
    assert run("edit", models("masked", "bytes"), "the", "--below", 0, "--seed", 1).stdout == "the\n"
    done = run("edit", models("masked", "bytes"), "the", "--span", "4-9")
    assert (done.exit_code, done.stderr.startswith("error: --span '4-9'")) == (2, True)
