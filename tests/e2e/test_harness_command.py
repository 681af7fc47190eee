"""``redraft lm-eval``: a task of a folder on a model of a folder, its figures printed and kept."""

import json

import pytest

from redraft import records

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(lm_eval|datasets|evaluate|multiprocess|dill|sqlitedict).*"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{gold}}}}"
{more}
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    from lm_eval import evaluator

    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)
    rows = [{"q": "ab", "gold": 1, "choices": ["c", "d"]}, {"q": "b", "gold": 0, "choices": ["ca", "d"]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kinds = {
        "choose": ("multiple_choice", 'doc_to_choice: "{{choices}}"\nmetadata: {version: 3}'),
        "say": ("generate_until", "generation_kwargs: {until: [zz], max_gen_toks: 9, do_sample: false}"),
    }
    for name, (kind, more) in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, folder=tmp_path, kind=kind, more=more))
    return tmp_path


def test_figures_are_printed_and_kept_with_what_they_cost(run, models, tasks):
    (tasks / "settings.json").write_text('{"say": {"length": 4, "block": 2, "steps": 1}}')
    args = [
        "lm-eval",
        models("masked", "bytes"),
        "--tasks",
        "choose,say",
        "--include-path",
        tasks,
        "--out",
        "found.json",
    ]
    args += ["--settings", tasks / "settings.json", "--batch-size", 3, "--draws", 8, "--cache-file", "kept.sqlite"]
    done = run(*args, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["results"]) == {"choose", "say"}
    assert found["versions"]["choose"] == 3
    wanted = {"until": ["zz"], "length": 4, "temperature": 0.0, "block": 2, "steps": 1, "sampler": "low_confidence"}
    assert wanted.items() <= found["settings"]["say"].items()
    assert found["settings"]["choose"]["draws"] == 8
    assert found["cost"]["written"]["forwards"] == 2 * 2, "two prompts of two lengths, in two blocks of a step"
    assert found["requests"] == {"requests": 6, "distinct": 6, "kept": 0}
    kept = records.read(tasks / "found.json")
    assert kept is not None
    assert kept["kind"] == "harness"
    assert kept["results"] == found["results"]
    assert kept["made"]["seeds"] == [0]
    again = run(*args)
    assert "choose acc" in again.stdout
    assert "standard error" in again.stdout
    assert "lower bound (bound)" in again.stdout, "choices of two tokens have no chance in them"
    stored = records.read(tasks / "found.json")
    assert stored["cost"]["scored"]["texts"] == stored["cost"]["written"]["texts"] == 0
    assert run("report", tasks).exit_code == 0
    page = (tasks / "report.html").read_text("utf-8")
    assert "<td>choose</td><td>lower bound</td><td>bound</td>" in page


def test_options_reach(run, models, tasks):
    args = ["lm-eval", models("masked", "bytes"), "--tasks", "choose,say", "--include-path", tasks, "--json"]
    found = json.loads(
        run(*args, "--limit", 1, "--estimator", "one_step", "--length", 3, "--gen-kwargs", "steps=2").stdout
    )
    assert found["n_samples"]["choose"]["effective"] == 1
    assert found["settings"]["choose"]["estimator"] == "one_step"
    assert found["settings"]["say"]["steps"] == 2
    assert found["settings"]["say"]["length"] == 9, "the task says so"
    chatting = json.loads(
        run(*args, "--chat", "--template", "plain", "--limit", 1, "--settings", settings(tasks)).stdout
    )
    assert chatting["chat"]
    assert chatting["cost"]["scored"]["positions"] > found["cost"]["scored"]["positions"]


def settings(tasks):
    (tasks / "short.yaml").write_text("say: {length: 2}\n")
    return tasks / "short.yaml"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tasks", "chose"], ["chose", "did you mean 'choose'"]),
        (["--tasks", "say", "--sampler", "low_confidnce"], ["did you mean 'low_confidence'"]),
        (["--tasks", "say", "--system", "Be brief."], ["--chat"]),
        (["--tasks", "choose", "--estimator", "bond"], ["did you mean 'bound'"]),
        (["--tasks", "choose", "--settings", "nowhere.json"], ["nowhere.json"]),
        (["--tasks", "choose", "--device", "cuda:9"], ["cuda:9"]),
    ],
)
def test_mistakes_are_one_line(more, words, refused, models, tasks):
    refused("lm-eval", models("masked", "bytes"), "--include-path", tasks, *more, words=tuple(words))
