import argparse
import json
import random
import statistics
import sys

import pytest

from common.conversations import LONG, LONGEST, SHORTEST, draw_records, read_records, short_length
from common.options import wanted
from common.process import run_side
from common.proof import prove
from common.sides import Side
from sft import DEVICE_BATCH, PEERS, SEQUENCES, figures, parse, proof_settings, rows_of, settings_of
from sides.rows import labelled, rows_in_order

LENGTHS = ((3, 2), (1, 1), (5, 5), (2, 1), (1, 9), (4, 4))
ROWS = [{"prompt": [1] * prompt, "answers": [[2] * answer]} for prompt, answer in LENGTHS]


def words(record: dict) -> list[int]:
    return [len(message["content"].split()) for message in record["messages"]]


def test_drawn_records_are_the_same_for_a_seed():
    assert draw_records("short", 5, seed=1) == draw_records("short", 5, seed=1) != draw_records("short", 5, seed=2)


def test_long_records_have_their_length_and_their_masked_share():
    question, answer = words(draw_records("long", 1, seed=0)[0])
    assert LONG - 40 < question + answer < LONG
    assert answer / LONG == pytest.approx(0.7, abs=0.01)


def test_short_lengths_are_lognormal_between_their_bounds():
    chance = random.Random(0)
    lengths = [short_length(chance) for _ in range(4000)]
    assert (min(lengths), max(lengths)) == (SHORTEST, LONGEST)
    assert 190 < statistics.mean(lengths) < 215


def test_a_file_gives_its_first_records_or_says_that_it_has_too_few(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert read_records(path, 2) == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(SystemExit, match="holds 2 records, 3 are wanted"):
        read_records(path, 3)


def test_rows_named_by_program_or_by_row_are_wanted():
    assert wanted("trl best", None)
    assert wanted("trl best", ["trl"])
    assert wanted("unsloth best, compiled", ["unsloth best, compiled"])
    assert not wanted("trl best", ["trl default", "tr"])


@pytest.mark.parametrize(("model", "work"), SEQUENCES)
def test_every_row_of_a_peer_makes_whole_steps(model, work):
    given = parse(["--model", model, "--work", work])
    for peer in PEERS:
        for name, settings, _ in rows_of(peer, given):
            assert settings["batch"] * settings["accumulation"] == given.sequences, (peer, name)
            assert settings["batch"] == DEVICE_BATCH[work]
    assert bool(rows_of("torchtune", given)) == (model == "smollm2")


def test_the_proof_takes_accumulated_steps_of_the_first_records(tmp_path):
    given = parse(["--folder", str(tmp_path)])
    shared = settings_of(given, str(tmp_path))
    (tmp_path / "data.jsonl").write_text("".join(f'{{"text": "{number}"}}\n' for number in range(20)))
    settings = proof_settings(shared, given)
    assert settings["dtype"] == "float32"
    assert settings["batch"] * settings["accumulation"] == settings["sequences"]
    kept = [json.loads(line)["text"] for line in (tmp_path / "data.jsonl.proof.jsonl").read_text().splitlines()]
    assert kept == [str(number) for number in range(settings["steps"] * settings["sequences"])]


def test_rates_run_from_the_end_of_the_warm_up():
    given = argparse.Namespace(warmup=1, steps=2, sequences=2)
    result = {
        "ends": [(100.0, 1.0), (104.0, 3.0), (106.0, 4.0), (109.0, 6.0)],  # the start is marked as well
        "started": 90.0,
        "peak_bytes": 30,
        "import_bytes": 10,
        "losses": [1.0, 1.0, 1.0],
    }
    found = figures(result, ROWS, {"floor_seconds": 1.0}, given)
    tokens, scored = 10 + 3 + 10 + 8, 5 + 1 + 9 + 4
    assert found["tokens_per_second"] == tokens / 5
    assert found["scored_tokens_per_second"] == scored / 5
    assert found["tokens_per_cpu_second"] == tokens / 3
    assert (found["cpu_seconds"], found["share_of_floor"], found["first_step_seconds"]) == (3.0, 0.2, 14.0)
    assert found["step_seconds"] == [2.0, 3.0]
    assert found["peak_less_import_bytes"] == 20
    assert "ends" not in found


def test_sorting_changes_no_step(tmp_path):
    (tmp_path / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = {"tokens": str(tmp_path / "tokens.jsonl"), "batch": 1, "accumulation": 3, "steps": 2}
    assert rows_in_order({**settings, "sort_within_step": False}) == ROWS
    assert rows_in_order({**settings, "sort_within_step": True}) == [ROWS[i] for i in (1, 0, 2, 3, 5, 4)]
    assert labelled(ROWS[0]) == {"input_ids": [1, 1, 1, 2, 2], "labels": [-100, -100, -100, 2, 2]}


def side(folder, name: str, losses: str) -> Side:
    """A program that says these losses."""
    script = folder / f"{name}.py"
    script.write_text(
        "import json, os, sys\n"
        "given = json.load(open(sys.argv[1]))\n"
        f"said = {{'losses': {losses}, 'seen': given, 'variable': os.environ.get('ONE')}}\n"
        "json.dump(said, open(given['out'], 'w'))\n"
    )
    return Side(name, sys.executable, str(script), {"shift": 0.0}, {"ONE": "1"})


def test_programs_that_agree_are_proven_equal(tmp_path):
    sides = [side(tmp_path, "one", "[2.0, 1.0]"), side(tmp_path, "two", "[2.0, 1.0 + given['shift']]")]
    assert prove(sides, {"threads": 1, "steps": 2}, 1e-3) == {"one": [2.0, 1.0], "two": [2.0, 1.0]}
    with pytest.raises(SystemExit, match="step 1 differ"):
        prove(sides, {"threads": 1, "steps": 2, "shift": 0.1}, 1e-3)
    with pytest.raises(SystemExit, match="first loss is not"):
        prove(sides, {"threads": 1, "steps": 2}, 1e-3, start=1.9)
    with pytest.raises(SystemExit, match="too few records"):
        prove(sides, {"threads": 1, "steps": 3}, 1e-3)


def test_a_side_gets_its_settings_and_variables_and_says_when_it_started(tmp_path):
    made = side(tmp_path, "one", "[1.0]")
    result = made.train({"threads": 1, "shift": 5.0})
    assert (result["variable"], result["seen"]["shift"], result["seen"]["task"]) == ("1", 0.0, "train")
    assert result["started"] > 0
    (tmp_path / "bad.py").write_text("raise SystemExit('no such thing')")
    with pytest.raises(SystemExit, match="no such thing"):
        run_side(sys.executable, str(tmp_path / "bad.py"), {"threads": 1})
