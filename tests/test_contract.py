"""How the contract is cut into sentences, and what counts as a proof: tests/contract.py."""

import pytest
from contract import add_tests, find, problems_of, sentences_of

TEXT = """
# A thing

First it says, e.g. that `a.b ..` is (one. Even here.) sentence; still! Second one.
- An item: goes on
  over lines.
- Another.

```python
print("Not. A. Sentence.")
```
## Parts (all frozen)
| name | meaning |
|---|---|
| `x` | one. Two | 5 |
"""


def test_a_sentence_ends_at_a_full_stop_but_not_in_code_or_parentheses():
    assert [(sentence.heading, sentence.text) for sentence in sentences_of(TEXT)] == [
        ("A thing", "First it says, e.g. that `a.b ..` is (one. Even here.) sentence; still!"),
        ("A thing", "Second one."),
        ("A thing", "An item: goes on over lines."),
        ("A thing", "Another."),
        ("Parts", "Parts (all frozen)"),
        ("Parts", "`x` | one."),
        ("Parts", "Two | 5"),
    ]


@pytest.mark.parametrize(("phrase", "words"), [("Third", "no sentence"), ("e", "6 sentences")])
def test_a_phrase_must_be_of_just_one_sentence(phrase, words):
    sentences = list(sentences_of(TEXT))
    assert find(sentences, "goes on")[0].text == "An item: goes on over lines."
    assert words in find(sentences, phrase)[1]


def test_a_sentence_without_a_test_and_without_a_reason_is_a_problem():
    sentence = next(sentences_of(TEXT))
    assert "no test proves" in next(problems_of(sentence))
    sentence.listed.append(("later: tools", "no such tool yet"))
    assert list(problems_of(sentence)) == []
    sentence.tests.append("test_x.py::test_it")
    assert list(problems_of(sentence)) == []


def test_a_mark_names_its_test_and_a_stray_one_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("contract.HERE", tmp_path)
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "@pytest.mark.contract('An item')\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.contract('Another'))])\n"
        "def test_it(x): ...\n"
        "@pytest.mark.contract('nowhere', 'An' + 'other')\n"
        "def test_wrong(): ...\n"
        "class TestNothing:\n"
        "    mark = pytest.mark.contract('Another')\n"
    )
    sentences = list(sentences_of(TEXT))
    problems = list(add_tests(sentences))
    named = {sentence.text: sentence.tests for sentence in sentences if sentence.tests}
    assert named == {
        "An item: goes on over lines.": ["test_x.py::test_it"],
        "Another.": ["test_x.py::test_it"],
    }
    assert ["nowhere" in problems[0], "plain texts" in problems[1], "no test's" in problems[2]] == [True] * 3
