"""Text that comes in pieces: stop strings are found wherever they are cut, and nothing of them is let through."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.rollout.text import StopFinder


def through(pieces: list[str], stops: list[str]) -> tuple[str, list[int], bool]:
    finder = StopFinder[int](stops)
    text, marks = "", []
    for number, piece in enumerate(pieces):
        out, gone = finder.add(piece, number)
        text, marks = text + out, marks + gone
        assert not any(stop in text for stop in stops)
        if finder.found:
            return text, marks, True
    out, gone = finder.end()
    return text + out, marks + gone, finder.found


def test_by_hand():
    assert through(["ab", "c", "de"], ["cd"]) == ("ab", [0], True)
    assert through(["ab", "c", "xe"], ["cd"]) == ("abcxe", [0, 1, 2], False)
    assert through(["abc"], ["c", "b"]) == ("a", [], True)
    assert through(["a", "aa", "b"], ["aab"]) == ("a", [0], True)
    assert through(["x", ""], []) == ("x", [0, 1], False)


def test_what_may_begin_a_stop_string_waits():
    finder = StopFinder[int](["stop"])
    assert finder.add("a sto", 0) == ("a ", [])
    assert finder.add("ne", 1) == ("stone", [0, 1])
    assert finder.end("!") == ("!", [])


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_it_does_not_matter_how_the_text_is_cut(pieces: list[str], stops: list[str]):
    whole = "".join(pieces)
    text, marks, found = through(pieces, stops)
    ends = [at + len(stop) for stop in stops if (at := whole.find(stop)) >= 0]
    assert found == bool(ends)
    assert whole.startswith(text)
    if not found:
        assert text == whole
        assert marks == list(range(len(pieces)))
    else:
        assert marks == sorted(set(marks))
        assert sum(len(pieces[mark]) for mark in marks) <= len(text)
