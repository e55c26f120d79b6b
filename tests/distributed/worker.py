"""One rank of a tiny training: python -m tests.distributed.worker MODEL DATA RUNS KEY=VALUE..."""

import sys
from pathlib import Path

import torch

from tunesmith.distributed.mesh import join_world
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir


def main() -> None:
    torch.set_num_threads(1)
    model, data, runs, *overrides = sys.argv[1:]
    mesh = join_world(60)
    recipe = load_recipe(None, [f"model.path={model}", f"data.train={data}", *overrides], {}).recipe
    made = RunDir.create(Path(runs), f"ranks-{mesh.world}").path if mesh.is_first else None
    run = RunDir(Path(mesh.share(None if made is None else str(made))))
    with make_progress(quiet=True) as progress:
        execute(recipe, run, mesh, progress)
    mesh.close()


if __name__ == "__main__":
    main()
