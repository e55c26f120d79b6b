"""One measured run of LLaMA-Factory's `train` (DPO, ORPO); started by preference.py in its own environment."""

import json
import sys
from pathlib import Path

from llamafactory_run import CheckedClock, run, scored
from rows import check, rows_in_order


def look(theirs: dict, row: dict, number: int) -> None:
    answers = [scored(theirs[f"{name}_input_ids"], theirs[f"{name}_labels"]) for name in ("chosen", "rejected")]
    check(row, number, answers[0][0], [answer for _, answer in answers])


def train(settings: dict) -> dict:
    rows = rows_in_order(settings)
    records = [
        {"instruction": row["prompt_text"], "chosen": row["answer_texts"][0], "rejected": row["answer_texts"][1]}
        for row in rows
    ]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    keys = {
        "stage": "dpo",
        "finetuning_type": "lora",
        "adapter_name_or_path": settings["adapter"],
        "pref_loss": "orpo" if settings["method"] == "orpo" else "sigmoid",
        "pref_beta": settings["beta"],
        "num_train_epochs": settings["epochs"],
    }
    return run(settings, CheckedClock(rows, look), records, {"ranking": True, "columns": columns}, keys)


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"]).write_text(json.dumps(train(given)))
