"""The optimisers that a recipe can name: the union of `train.optimizer` and the reference come from this tuple."""

from tunesmith.train.optimizers.adafactor import Adafactor
from tunesmith.train.optimizers.adam_mini import AdamMini
from tunesmith.train.optimizers.adamw import AdamW
from tunesmith.train.optimizers.adamw8bit import AdamW8bit
from tunesmith.train.optimizers.apollo import Apollo
from tunesmith.train.optimizers.base import OptimizerConfig
from tunesmith.train.optimizers.galore import GaLore
from tunesmith.train.optimizers.lion import Lion
from tunesmith.train.optimizers.muon import Muon
from tunesmith.train.optimizers.schedule_free import ScheduleFree
from tunesmith.train.optimizers.sgd import SGD

OPTIMIZERS: tuple[type[OptimizerConfig], ...] = (
    AdamW,
    AdamW8bit,
    AdamMini,
    SGD,
    Lion,
    Adafactor,
    Muon,
    ScheduleFree,
    GaLore,
    Apollo,
)

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adafactor",
    "AdamMini",
    "AdamW",
    "AdamW8bit",
    "Apollo",
    "GaLore",
    "Lion",
    "Muon",
    "OptimizerConfig",
    "ScheduleFree",
]
