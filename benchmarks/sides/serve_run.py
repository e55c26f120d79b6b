"""Clients of one server, or answers one at a time by transformers; started by serve.py with a JSON file of settings."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
from memory import memory_peak
from transformers import AutoModelForCausalLM, AutoTokenizer

TICKS = 100  # of processor time in a second, as /proc counts it


@dataclass
class Seen:
    """What the clients saw, and how much memory the server held meanwhile."""

    first: list[float] = field(default_factory=list)  # seconds to the first token
    tokens: int = 0
    requests: int = 0
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, settings: dict, number: int, seen: Seen) -> None:
    prompt = settings["prompts"][number % len(settings["prompts"])]
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": settings["tokens"],
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin, first, made = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            seen.errors.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
            return
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - begin
                event = json.loads(line.removeprefix("data: "))
                made = (event.get("usage") or {}).get("completion_tokens", made)
                if "error" in event:
                    seen.errors.append(event["error"]["message"])
    if made != settings["tokens"]:
        seen.errors.append(f"{made} tokens")
    seen.requests, seen.tokens = seen.requests + 1, seen.tokens + made
    seen.first.append(first or 0.0)


async def crowd(address: str, settings: dict, process: int) -> Seen:
    """Every client asks again when it was answered: for some requests each, or for some seconds."""
    seen, clients = Seen(), settings["clients"]
    limits = httpx.Limits(max_connections=clients + 1)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        begin = time.monotonic()

        async def run(number: int) -> None:
            done = 0
            while done < settings["each"] or time.monotonic() - begin < settings["seconds"]:
                try:
                    await ask(client, settings, number + done * clients, seen)
                except httpx.HTTPError as error:
                    seen.errors.append(repr(error))
                done += 1

        async def watch() -> None:
            while True:
                seen.memory.append((round(time.monotonic() - begin, 1), resident(process)))
                await asyncio.sleep(settings["watch"])

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(run(number) for number in range(clients)))
        watching.cancel()
    return seen


def by_server(settings: dict) -> dict:
    words = ["serve", f"m={settings['model']}", "--port", "0", "--dtype", settings["dtype"]]
    words += ["--products", settings["products"], "--max-wait", "600"]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "300"}
    program = [sys.executable, "-P", "-m", "tunesmith", *words]
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        line = next((line for line in process.stderr if "http://" in line), "")
        found = re.search(r"http://\S+:\d+", line)
        assert found is not None, "the server did not start"
        warm = {**settings, "clients": min(4, settings["clients"]), "each": 1, "seconds": 0}
        asyncio.run(crowd(found[0], warm, process.pid))
        begin, begin_cpu = time.perf_counter(), processor_seconds(process.pid)
        seen = asyncio.run(crowd(found[0], settings, process.pid))
        seconds, cpu = time.perf_counter() - begin, processor_seconds(process.pid) - begin_cpu
        peak = status(process.pid, "VmHWM")
    finally:
        process.terminate()
        process.wait(60)
    return {**figures(seen, seconds, cpu), "peak_bytes": peak, "memory": seen.memory, "errors": seen.errors[:20]}


def by_transformers(settings: dict) -> dict:
    """As a program without a server would: each answer alone, the next when it is done."""
    torch.set_num_threads(settings["threads"])
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[settings["dtype"]]
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype).eval()
    tokenizer, seen = AutoTokenizer.from_pretrained(settings["model"]), Seen()

    def answer(number: int, tokens: int) -> None:
        turns = [{"role": "user", "content": settings["prompts"][number % len(settings["prompts"])]}]
        given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        model.generate(**given, do_sample=False, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0)

    answer(0, 2)
    begin = time.perf_counter()
    answer(1, 1)
    seen.first.append(time.perf_counter() - begin)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for number in range(settings["each"]):
        answer(number, settings["tokens"])
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    seen.requests, seen.tokens = settings["each"], settings["each"] * settings["tokens"]
    return {**figures(seen, seconds, cpu), "peak_bytes": memory_peak(), "memory": [], "errors": []}


def figures(seen: Seen, seconds: float, cpu: float) -> dict:
    first = sorted(seen.first) or [0.0]
    return {
        "requests": seen.requests,
        "requests_per_second": seen.requests / seconds,
        "tokens_per_second": seen.tokens / seconds,
        "tokens_per_cpu_second": seen.tokens / max(cpu, 1e-9),
        "first_token_p50": first[len(first) // 2],
        "first_token_p95": first[min(len(first) - 1, int(0.95 * len(first)))],
    }


def resident(process: int) -> int:
    return status(process, "VmRSS")


def status(process: int, name: str) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")))


def processor_seconds(process: int) -> float:
    told = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / TICKS


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    made = (by_transformers if given["program"] == "transformers" else by_server)(given)
    Path(given["out"]).write_text(json.dumps(made))
