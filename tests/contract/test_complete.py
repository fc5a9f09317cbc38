"""Every sentence of the contract has a test, and every test says in the contract's words what it holds."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def words(text: str) -> str:
    return " ".join(text.split())


def sentences() -> dict[str, str]:
    lines = (HERE / "sentences.txt").read_text().splitlines()
    return dict(line.split("  ", 1) for line in lines if re.match(r"[a-z]+\.\d+  ", line))


SENTENCES = sentences()


def declared() -> list[tuple[str, ast.FunctionDef, tuple[str, ...]]]:
    """Each test of this folder, and the numbers of its mark."""
    found = []
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.append((f"{path.name}::{node.name}", node, _numbers(node)))
    return [each for each in found if not each[0].startswith("test_complete")]


def _numbers(node: ast.FunctionDef) -> tuple[str, ...]:
    return tuple(
        argument.value
        for mark in node.decorator_list
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.sentence"
        for argument in mark.args
        if isinstance(argument, ast.Constant)
    )


TESTS = declared()


def test_the_list_is_in_order() -> None:
    sections: dict[str, list[int]] = {}
    for number in SENTENCES:
        section, _, count = number.partition(".")
        sections.setdefault(section, []).append(int(count))
    assert all(counts == list(range(1, len(counts) + 1)) for counts in sections.values())
    assert len(SENTENCES) > 140


@pytest.mark.parametrize("number", list(SENTENCES))
def test_each_sentence_has_a_test(number: str) -> None:
    assert any(number in numbers for _, _, numbers in TESTS), f"nothing holds {number}: {SENTENCES[number]}"


@pytest.mark.parametrize(("name", "node", "numbers"), [pytest.param(*test, id=test[0]) for test in TESTS])
def test_each_test_quotes_what_it_holds(name: str, node: ast.FunctionDef, numbers: tuple[str, ...]) -> None:
    assert numbers, f"{name} holds no sentence"
    assert set(numbers) <= set(SENTENCES), f"{name} holds {set(numbers) - set(SENTENCES)}, which are not in the list"
    quote = words((ast.get_docstring(node) or "").split("\n\n")[0])
    assert quote, f"{name} quotes nothing"
    section = numbers[0].partition(".")[0]
    text = words(" ".join(text for number, text in SENTENCES.items() if number.startswith(f"{section}.")))
    for part in quote.split(" ... "):
        assert part in text, f"{name}: the contract does not say {part!r}"
