"""The contract and its proofs: every sentence of docs/API.md, and the tests that name it.

A test names sentences with `@pytest.mark.contract("a verbatim piece of one sentence", ...)`. A sentence that
no test can prove yet, or that claims nothing, is listed with its reason in contract.toml beside this file.
docs/contract.md is made of both.

    python tests/contract.py           fails, and says why, unless all of this agrees
    python tests/contract.py --write   writes docs/contract.md anew first
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
API = HERE.parent / "docs" / "API.md"
TABLE = HERE.parent / "docs" / "contract.md"
LISTED = HERE / "contract.toml"
STATES = ("later: network", "later: tools", "no claim")

HEAD = """# The contract, sentence by sentence

What [API.md](API.md) says, which test proves it, and what is still to come. `./dev docs` makes it of the
tests' `contract` marks and of `tests/contract.toml`; `./dev check` fails when it is out of date.
"""


@dataclass
class Sentence:
    """One sentence of the contract, as it is written there."""

    heading: str
    text: str
    tests: list[str] = field(default_factory=list)
    listed: list[tuple[str, str]] = field(default_factory=list)
    """State and reason, from contract.toml."""


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--write"]):
        print("usage: contract.py [--write]", file=sys.stderr)
        return 2
    sentences = list(sentences_of(API.read_text()))
    problems = [*add_tests(sentences), *add_listed(sentences)]
    for sentence in sentences:
        problems += problems_of(sentence)
    table = table_of(sentences)
    if arguments:
        TABLE.write_text(table)
    if not TABLE.exists() or TABLE.read_text() != table:
        problems.append("docs/contract.md is not what tests and contract.toml say; run ./dev docs")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


# ---- what the contract says ---------------------------------------------------------------------


def sentences_of(text: str) -> Iterator[Sentence]:
    """The sentences in order. A row of a table is read as one line, with its bars between the cells."""
    heading = ""
    for block in blocks_of(text):
        if title := re.match(r"#+ (.*)", block):
            heading = title[1].partition(" (")[0]
            if "(" in block:  # a heading that says more than its name
                yield Sentence(heading, title[1])
        else:
            for sentence in split(block):
                yield Sentence(heading, sentence)


def blocks_of(text: str) -> Iterator[str]:
    """Paragraphs, list items, rows and headings; code blocks are left out."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    # The names of the columns, and the line below them.
    text = re.sub(r"^\|.*\n\|(?:-+\|)+$", "", text, flags=re.MULTILINE)
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        alone = line.startswith(("#", "|"))
        if paragraph and (not line or alone or line.startswith("- ")):
            yield " ".join(paragraph)
            paragraph = []
        if alone:
            yield line.strip("| ") if line.startswith("|") else line
        elif line:
            paragraph.append(line.removeprefix("- ").strip())


def split(text: str) -> Iterator[str]:
    """At each full stop, but for those in code, in parentheses and of abbreviations."""
    start = depth = 0
    code = False
    for at, letter in enumerate(text):
        if letter == "`":
            code = not code
        elif code:
            continue
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter in ".!?" and not depth and text[at + 1 : at + 2] in (" ", ""):
            if text[start : at + 1].endswith(("e.g.", "i.e.", "etc.")):
                continue
            yield text[start : at + 1].strip()
            start = at + 1
    if rest := text[start:].strip():
        yield rest


# ---- what proves it -----------------------------------------------------------------------------


def add_tests(sentences: list[Sentence]) -> Iterator[str]:
    """Gives each sentence the tests that name it; what is wrong with the names."""
    for path in sorted(HERE.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        texts = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        marks = {node for node in ast.walk(tree) if is_mark(node)}
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            test = f"{path.relative_to(HERE)}::{function.name}"
            for mark in (node for part in function.decorator_list for node in ast.walk(part)):
                if mark not in marks:
                    continue
                marks.discard(mark)
                for argument in mark.args:
                    phrase = texts.get(argument.id) if isinstance(argument, ast.Name) else argument
                    if not (isinstance(phrase, ast.Constant) and isinstance(phrase.value, str)):
                        yield f"{test}: a contract mark takes plain texts, not {ast.unparse(argument)}"
                        continue
                    sentence, problem = find(sentences, phrase.value)
                    if problem:
                        yield f"{test}: {problem}"
                    elif test not in sentence.tests:
                        sentence.tests.append(test)
        yield from (f"{path.name}:{mark.lineno}: a contract mark that is no test's" for mark in marks)


def is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.contract"


def add_listed(sentences: list[Sentence]) -> Iterator[str]:
    """Gives each sentence its states of contract.toml; what is wrong there."""
    for entry in tomllib.loads(LISTED.read_text())["listed"]:
        if entry["state"] not in STATES:
            yield f"contract.toml: {entry['state']!r} is no state; choose from {', '.join(STATES)}"
        for phrase in entry["phrases"]:
            sentence, problem = find(sentences, phrase)
            if problem:
                yield f"contract.toml: {problem}"
            else:
                sentence.listed.append((entry["state"], entry["reason"]))


def find(sentences: list[Sentence], phrase: str) -> tuple[Sentence, str]:
    """The one sentence with the phrase, and what is wrong if there is not just one."""
    phrase = " ".join(phrase.split())
    found = [sentence for sentence in sentences if phrase in sentence.text]
    if len(found) == 1:
        return found[0], ""
    if not found:
        return sentences[0], f"no sentence of docs/API.md has {phrase!r}; copy a piece of one as it stands"
    return sentences[0], f"{len(found)} sentences of docs/API.md have {phrase!r}; take a longer piece of one"


def problems_of(sentence: Sentence) -> Iterator[str]:
    """A sentence has tests or a reason; with tests, only a part of it may be for later."""
    states = [state for state, _ in sentence.listed]
    if not sentence.tests and not states:
        yield f"no test proves {sentence.text!r}; mark one, or list it in contract.toml with the reason"
    if len(states) > 1:
        yield f"contract.toml has {sentence.text!r} {len(states)} times; once is enough"
    if sentence.tests and "no claim" in states:
        yield f"contract.toml says that {sentence.text!r} claims nothing, but {sentence.tests[0]} proves it"


# ---- the table ----------------------------------------------------------------------------------


def table_of(sentences: list[Sentence]) -> str:
    """docs/contract.md."""
    lines, heading = [HEAD], None
    for sentence in sentences:
        if sentence.heading != heading:
            heading = sentence.heading
            lines += [f"\n## {heading}\n", "| sentence | tests | state |", "|---|---|---|"]
        state = [f"{state} ({reason})" for state, reason in sentence.listed]
        if sentence.tests:
            state = ["tested", *(it for it in state if it.startswith("later"))]
        cells = (sentence.text, "<br>".join(sentence.tests), "; in part ".join(state))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
