"""What must not change while a study grows, and opening a study by it."""

import uuid
import warnings
from importlib.metadata import version

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage

from experiments.context import TrainingContext
from experiments.study.settings import SearchSettings
from experiments.tracking import names
from speaker.common.errors import UserError, describe_differences
from speaker.training.metrics import OBJECTIVE

CONTRACT, IDENTITY, PARENT = "contract", "id", "mlflow.run_id"  # attributes of an Optuna study


def contract_of(settings: SearchSettings, context: TrainingContext) -> dict[str, str]:
    """Return what must not change while a study grows, by name, in words."""
    base = settings.base.identity()
    varied = settings.space.definition()
    return {
        "objective": OBJECTIVE,
        "direction": "maximize",
        "corpus": context.pack.digest,
        "space": settings.space.name,
        **{f"space.{name}": words for name, words in varied.items()},
        **{
            name: str(value)
            for name, value in base.items()
            if name not in varied and name != "seed"
        },
        **{f"protocol.{name}": str(value) for name, value in vars(context.protocol).items()},
        **({"preset": settings.preset} if settings.preset else {}),
        **({"rescue": "on"} if settings.rescue else {}),
        "seed": str(settings.seed),
        "version.torch": version("torch"),
        "version.optuna": version("optuna"),
    }


def open_study(storage: RDBStorage, name: str, contract: dict[str, str]) -> optuna.Study:
    """Open a study, or make it; its contract must be this one."""
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    written = study.user_attrs.get(CONTRACT)
    if written is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(IDENTITY, uuid.uuid4().hex)
        study.set_user_attr(CONTRACT, contract)
        name_objective(study)
        return study
    if written is None:
        raise UserError(
            f"study {name!r} holds trials of another program; choose another --study, such as "
            f"{name}-2"
        )
    if changes := describe_differences(_renamed(written), contract):
        raise UserError(
            f"study {name!r} is of another kind: {changes}; choose another --study, such as "
            f"{name}-2"
        )
    name_objective(study)
    return study


def name_objective(study: optuna.Study) -> None:
    """Say what Optuna's dashboard is to call the objective, unless that is said already."""
    if study.metric_names != [OBJECTIVE]:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            study.set_metric_names([OBJECTIVE])


def _renamed(contract: dict[str, str]) -> dict[str, str]:
    """Return a contract, of an older version perhaps, with the objective's present name."""
    objective = contract.get("objective", "")
    return {**contract, "objective": names.PRESENT.get(objective, objective)}
