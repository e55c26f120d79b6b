"""How preferences developed: first against last, held-out, and what should worry."""

from tunesmith.track.preferences import courses, worries


def rows(**ends: tuple[float, float]) -> list[dict]:
    """100 steps on which each figure goes from one value to another."""
    names = {name.replace("__", "/"): pair for name, pair in ends.items()}
    return [
        {"step": step, **{f"train/{name}": low + (high - low) * (step >= 50) for name, (low, high) in names.items()}}
        for step in range(100)
    ]


def test_the_first_and_the_last_tenth_are_compared_with_what_was_held_out():
    given = [*rows(rewards__accuracy=(0.5, 0.9)), {"step": 99, "eval/rewards/accuracy": 0.75}]
    (course,) = courses(given)
    assert (round(course.first, 6), round(course.last, 6), course.held_out) == (0.5, 0.9, 0.75)
    assert worries([course]) == []


def test_a_run_without_preferences_has_none():
    assert courses([{"step": 1, "train/loss": 2.0}]) == []


def test_displaced_likelihood_is_told():
    assert "likelihood displacement: in 80% of the pairs" in worries(courses(rows(displacement=(0.1, 0.8))))[0]
    assert worries(courses(rows(displacement=(0.9, 0.2)))) == []


def test_a_preference_for_length_is_told():
    assert "may learn length" in worries(courses(rows(length__chosen=(90, 90), length__rejected=(30, 30))))[0]


def test_pairs_learned_by_heart_are_told():
    given = [*rows(rewards__accuracy=(0.5, 1.0)), {"step": 99, "eval/rewards/accuracy": 0.6}]
    assert "less on held-out records (60%)" in worries(courses(given))[0]
