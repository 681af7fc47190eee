"""The tables of laws are true: each number stands in them once, each test they name exists and names that number."""

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOKENS = {f"T{n}" for n in range(31)} - {"T3"} | {"T0b", "T0c", "T2b", "T3a", "T3b", "T3c"}
VECTORS = {f"2.2.{n}" for n in range(1, 11)} | {f"18.{n}" for n in (2, 3, 4, 5, 6, 7, 13, 14, 15)}
NUMBERS = sorted(TOKENS | VECTORS | {"11.6", "18.9"})
ROW = re.compile(r"^\| (T\d+[a-c]?|2\.2\.\d+|1[18]\.\d+) \| (.+) \| ([^|]+) \|$", re.MULTILINE)
LAW = re.compile(r"^\| ([^|]+) \| (.+) \| (`(?:\w+/)?test_[^|]+) \|$", re.MULTILINE)
DECODED, RELEASED, MEASURED = "Decoding", "Released checkpoints and fine-tuning", "Likelihood"
SAMPLED, DEFENDED = "Samples and sweeps", "Defences"
DECODING = {
    *("batch_invariance", "caches", "conflicts", "constraints", "doubt", "grammar", "guided_decoding", "guided_rates"),
    *("lengths", "revisions", "selection", "smc"),
}


def named(function: ast.FunctionDef) -> set[str]:
    """The numbers in a test's name (``test_t3a_t3c_..``, ``test_18_5_..``) or docstring (``T3a``, ``18.5``)."""
    parts, said = function.name.split("_"), ast.get_docstring(function) or ""
    in_name = {part.capitalize() for part in parts if re.fullmatch(r"t\d+[a-c]?", part)}
    in_name |= {number.replace("_", ".") for number in re.findall(r"(?<=_)(?:2_2|1[18])_\d+(?=_)", function.name)}
    in_words = re.findall(r"\bT\d+[a-c]?\b|(?<![\d.])(?:2\.2|1[18])\.\d+(?!\.?\d)", said)
    return in_name | set(in_words)


@functools.cache
def law_tests() -> dict[str, set[str]]:
    """The numbers that each test of ``tests/laws`` names."""
    return written("laws")


@functools.cache
def written(folder: str) -> dict[str, set[str]]:
    """The tests of a folder, and the numbers that each names."""
    return {
        f"{path.name}::{node.name}": named(node)
        for path in (ROOT / "tests" / folder).glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@functools.cache
def table() -> dict[str, list[str]]:
    """The tests that the tables of ``docs/laws.md`` name for each number."""
    rows = defaultdict(list)
    for number, _, cell in ROW.findall((ROOT / "docs" / "laws.md").read_text("utf-8")):
        rows[number] += re.findall(r"`([^`]+)`", cell)
    return dict(rows)


def test_every_number_has_one_row():
    rows = ROW.findall((ROOT / "docs" / "laws.md").read_text("utf-8"))
    assert sorted(number for number, _, _ in rows) == NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_every_law_is_tested_by_its_name(number):
    found = law_tests()
    assert any(number in numbers for numbers in found.values()), f"no test of tests/laws names {number}"
    listed = table()[number]
    assert listed, f"{number} names no test"
    for test in listed:
        assert test in found, f"{number} names {test}, which does not exist"
        assert number in found[test], f"{test} does not name {number} in its name or docstring"


def section(title: str) -> str:
    """What stands below a heading, up to the next."""
    _, _, text = (ROOT / "docs" / "laws.md").read_text("utf-8").partition(f"\n## {title}\n")
    return text.partition("\n## ")[0]


def laws(title: str) -> list[tuple[str, str, list[str]]]:
    """The rows of a table that goes by names: the law's name, what it states, and its tests."""
    return [(name, says, re.findall(r"`([^`]+)`", cell)) for name, says, cell in LAW.findall(section(title))]


@pytest.mark.parametrize("title", [DECODED, RELEASED, MEASURED, SAMPLED, DEFENDED])
def test_every_named_law_has_one_row_and_its_tests(title):
    """No row of the section is of another form, no name or statement stands twice, every test exists."""
    rows = laws(title)
    assert rows
    assert len(rows) == sum(line.startswith("|") for line in section(title).splitlines()) - 2
    for told in zip(*[(name, says) for name, says, _ in rows], strict=True):
        assert len(set(told)) == len(told)
    found = (
        law_tests()
        if title not in (RELEASED, SAMPLED, DEFENDED)
        else {f"{folder}/{test}" for folder in ("laws", "parity", "unit", "e2e") for test in written(folder)}
    )
    assert [test for _, _, tests in rows for test in tests if test not in found] == []


def test_every_file_of_decodings_laws_is_in_its_table():
    named_files = {test.partition("::")[0] for _, _, tests in laws(DECODED) for test in tests}
    assert {f"test_{name}.py" for name in DECODING} <= named_files


def test_numbers_are_read_as_they_are_written():
    code = 'def test_t3a_t12_is_true(self):\n    """T0b: as in T27, not in AT4 or T4x."""\n'
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    assert named(function) == {"T3a", "T12", "T0b", "T27"}
    code = 'def test_2_2_10_is_true(self):\n    """18.13, and 18.2: not 0.18.3, 118.4, 2.2 or 18.5.1; 11.6."""\n'
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    assert named(function) == {"2.2.10", "18.13", "18.2", "11.6"}
