"""Z1: what never stands in our code: pickle, eval, shells, unsafe loaders, remote code, attributes by computed name."""

import ast

import pytest
from tests.house.source import python_files, shown, tree

MODULES = {"pickle", "cPickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "os.system", "os.popen", "tempfile.mktemp", "asyncio.create_subprocess_shell",
    "pd.read_pickle",
}  # fmt: skip
METHODS = {"extractall"}
KEYWORDS = {
    ("shell", True),
    ("trust_remote_code", True),
    ("allow_pickle", True),
    ("verify", False),
    ("weights_only", False),
}
TEXTS = {"0.0.0.0"}
# Each entry is a place that was looked at, and why it is right. At most three.
REVIEWED = {
    "src/tunesmith/track/stdout.py": "a stand-in for stdout hands on whatever is asked of the real one",
}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
    if isinstance(node, ast.ImportFrom):
        return [str(node.module)] if str(node.module).partition(".")[0] in MODULES else []
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value in TEXTS else []
    if not isinstance(node, ast.Call):
        return []
    name = name_of(node.func)
    found = [name] if name in CALLS or name.rpartition(".")[2] in METHODS else []
    if name in ("getattr", "setattr", "hasattr") and not isinstance(node.args[1], ast.Constant):
        found.append(f"{name} by a computed name")
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if (keyword.arg, value) in KEYWORDS and isinstance(value, bool):
            found.append(f"{keyword.arg}={value}")
    return found


def test_z1_banned_calls():
    hits = {
        shown(path, node): found
        for path in python_files("src", "benchmarks")
        for node in ast.walk(tree(path))
        if (found := faults(node)) and shown(path, node).partition(":")[0] not in REVIEWED
    }
    assert not hits, hits
    assert len(REVIEWED) <= 3


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from marshal import loads", "torch.load(f)", "eval(x)", "subprocess.run(c, shell=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)", "archive.extractall(p)", "getattr(a, name)",
        "host = '0.0.0.0'", "yaml.load(x, Loader=L)", "np.load(p, allow_pickle=True)",
    ],
)  # fmt: skip
def test_each_rule_finds_its_fault(code):
    assert any(faults(node) for node in ast.walk(ast.parse(code)))


def test_harmless_code_passes():
    code = "model.eval()\nre.compile('x')\ntorch.compile(m)\nf(shell=False)\ngetattr(a, 'b', None)\nyaml.parse(x)"
    assert not any(faults(node) for node in ast.walk(ast.parse(code)))
