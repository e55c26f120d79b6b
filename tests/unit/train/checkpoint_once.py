"""Save one checkpoint, to be watched by strace. Usage: python checkpoint_once.py FOLDER."""

import sys
from pathlib import Path

import torch

from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.commit import Writers

store = CheckpointStore(Path(sys.argv[1]), writers=Writers(token="t"))
store.save(1, {"model": {"weight": torch.ones(8)}}, {"step": 1})
