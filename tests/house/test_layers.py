"""A room imports only lower rooms, every room has its layer, and no import goes round in a circle."""

from graphlib import CycleError, TopologicalSorter

import grimp
from importlinter.cli import lint_imports
from tests.house.source import ROOT


def test_layers(capfd):
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None, no_cache=True)
    assert code == 0, capfd.readouterr().out


def test_no_import_cycles():
    graph = grimp.build_graph("tunesmith", cache_dir=None)
    sorter = TopologicalSorter(
        {name: graph.find_modules_directly_imported_by(name) - {"tunesmith"} for name in graph.modules}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from error
