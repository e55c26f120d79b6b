"""Size budgets: a file, a function, a signature that grows past them is a design question."""

import ast

from tests.house.source import ROOT, SOURCE, python_files, shown, tree

Function = ast.FunctionDef | ast.AsyncFunctionDef
# Signatures that are not ours to choose, with who chooses them.
FOREIGN = {
    ("models/attention.py", "ragged_attention"): "transformers' AttentionInterface",
    ("models/attention.py", "dense_attention"): "transformers' AttentionInterface",
    ("rollout/decoding.py", "update"): "transformers' cache layers",
    ("data/template_worker.py", "_make_dict"): "jinja's dict()",
    ("data/template_worker.py", "__init__"): "jinja's namespace()",
    ("models/lora.py", "forward"): "PEFT's LoRA linear",
    ("models/layer/module.py", "forward"): "transformers' decoder layers",
    ("models/adapters/adaption.py", "forward"): "PEFT's attention with adaption prompts",
}


def commands() -> set[tuple[str, str]]:
    """Functions handed to `app.command(...)`: their arguments are the flags of a command."""
    return {
        (str(path.relative_to(SOURCE)), node.args[0].id)
        for path in python_files("src/tunesmith/cli")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Name)
        if isinstance(node.func.func, ast.Attribute) and node.func.func.attr in ("command", "callback")
    }


def functions() -> list[tuple[str, str, Function]]:
    return [
        (str(path.relative_to(SOURCE)), shown(path, node), node)
        for path in python_files("src")
        for node in ast.walk(tree(path))
        if isinstance(node, Function)
    ]


def test_files_have_at_most_400_lines():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in python_files("src", "tests", "benchmarks")
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 400
    }
    assert not long, long


def test_functions_have_at_most_60_lines():
    long = {place: node.end_lineno - node.lineno + 1 for _, place, node in functions() if node.end_lineno is not None}
    assert {place: lines for place, lines in long.items() if lines > 60} == {}


def test_functions_take_at_most_8_arguments():
    wide, free = {}, FOREIGN.keys() | commands()
    for file, place, node in functions():
        named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in named)
        if count > 8 and (file, node.name) not in free:
            wide[place] = count
    assert not wide, wide


def test_no_function_passes_unknown_keywords_through():
    passed = [
        place
        for file, place, node in functions()
        if node.args.kwarg and node.args.kwarg.arg != "_" and (file, node.name) not in FOREIGN
    ]
    assert not passed, passed


def test_the_list_of_foreign_signatures_is_not_stale():
    assert FOREIGN.keys() - {(file, node.name) for file, _, node in functions()} == set()


def test_modules_have_a_docstring_of_one_idea():
    missing = [str(path.relative_to(ROOT)) for path in python_files("src") if not ast.get_docstring(tree(path))]
    assert missing == []
