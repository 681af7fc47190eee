"""The public door: every promised name is there, and knocking costs nothing."""

import json
import subprocess
import sys

import pytest

import redraft

HEAVY = ("torch", "transformers", "pydantic", "numpy", "tokenizers", "safetensors", "huggingface_hub")


def heavy_after(code: str) -> list[str]:
    """The heavy packages that a fresh interpreter holds after ``code``."""
    report = f"import json, sys; print(json.dumps([m for m in {HEAVY} if m in sys.modules]), file=sys.stderr)"
    program = f"try:\n    {code}\nexcept SystemExit:\n    pass\n{report}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stderr)


def test_import_is_light():
    assert heavy_after("import redraft") == []


@pytest.mark.parametrize("options", [["--help"], ["--version"], ["train", "--help"], ["generate", "--help"]])
def test_help_is_light(options):
    found = heavy_after(f"import sys; sys.argv = ['redraft', *{options}]; from redraft.cli import main; main()")
    # typer itself reads option values with pydantic
    assert [package for package in found if package != "pydantic" or options == ["--help"]] == []


def test_every_name_resolves():
    for name in redraft.__all__:
        assert getattr(redraft, name) is not None, name
    assert dir(redraft) == sorted(redraft.__all__)


def test_all_is_exactly_what_is_offered():
    offered = {*redraft._MODULES, *redraft._HOMES, "__version__"}
    assert set(redraft.__all__) == offered
    assert len(redraft.__all__) == len(offered)


def test_names_come_from_where_they_say():
    from redraft import lm, processes, sampling

    assert redraft.LM is lm.LM
    assert redraft.masked is processes.masked
    assert redraft.gaussian is processes.gaussian, "the function, not the module of that name"
    assert redraft.samplers is sampling.samplers
    assert callable(redraft.likelihood), "the function, not the module of that name"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="mask_ed"):
        _ = redraft.mask_ed
