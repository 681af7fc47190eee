"""The harness without network, its tasks in a folder, and a model that answers them exactly."""

import json

import pytest
import yaml
from letters import CONTEXT, LETTERS, QUESTIONS, TEXTS, Exact

from redraft import LM
from redraft.data import build_tokenizer


@pytest.fixture(scope="module")
def words():
    return build_tokenizer("chars", [LETTERS])


@pytest.fixture
def exact(words):
    return LM(Exact(words.K), words, {"context": CONTEXT})


@pytest.fixture(scope="module")
def backend():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        from lm_eval import evaluator

        from redraft.harness import backend

        patch.setattr(evaluator, "add_env_info", lambda results: None)  # asks pip for all that is installed, each time
        yield backend


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of three tasks, each with its questions in a file of its own."""
    root = tmp_path_factory.mktemp("tasks")
    choice = [{"q": q, "choices": choices, "gold": gold} for q, choices, gold in QUESTIONS]
    rows = {"choice": choice, "text": [{"text": one} for one in TEXTS], "write": [{"q": q} for q, _, _ in QUESTIONS]}
    own = {
        "choice": {
            "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "{{gold}}",
            "doc_to_choice": "{{choices}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
        },
        "text": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
        },
        "write": {
            "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "x", "target_delimiter": "",
            "generation_kwargs": {"until": ["zz"], "max_gen_toks": 5, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }  # fmt: skip
    for name, task in own.items():
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows[name]))
        files = {"data_files": {"test": str(root / f"{name}.jsonl")}, "cache_dir": str(root / "cache")}
        about = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        (root / f"{name}.yaml").write_text(
            yaml.safe_dump({**about, **task, "metadata": {"version": 2}, "tag": "letters"})
        )
    return root


@pytest.fixture
def evaluate(backend, tasks):
    from redraft.harness.tasks import Asked, run

    def call(lm, *names, asked=None, **options):
        own = lm if isinstance(lm, backend.Harness) else backend.Harness(lm, **options)
        return run(own, Asked(names, include_path=tasks, **(asked or {})))

    return call
