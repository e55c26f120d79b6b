"""One measured run of LLaMA-Factory's `train` (SFT); started by sft.py in its own environment."""

import json
import sys
from pathlib import Path

from llamafactory_run import CheckedClock, run, scored
from rows import check, rows_in_order


def look(theirs: dict, row: dict, number: int) -> None:
    prompt, answer = scored(theirs["input_ids"], theirs["labels"])
    check(row, number, prompt, [answer])


def train(settings: dict) -> dict:
    rows = rows_in_order(settings)
    records = [{"instruction": row["prompt_text"], "output": row["answer_texts"][0]} for row in rows]
    columns = {"prompt": "instruction", "response": "output"}
    keys = {"stage": "sft", "finetuning_type": settings["tuning"], "max_steps": settings["steps"]}
    if settings["tuning"] == "lora":
        keys["adapter_name_or_path"] = settings["adapter"]
    return run(settings, CheckedClock(rows, look), records, {"columns": columns}, keys)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(train(given)))
