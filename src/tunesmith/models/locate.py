"""Where a model is: the starter, a folder, a GGUF file or a hub id becomes a local folder of plain safetensors."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

from tunesmith.contained import check_contained
from tunesmith.errors import Fix, MachineError, ModelError, Where
from tunesmith.models.cache import Progress
from tunesmith.models.gguf import locate_gguf
from tunesmith.models.gguf_header import is_gguf
from tunesmith.models.headers import refuse_pickles
from tunesmith.models.rounded import plain
from tunesmith.models.safety import CONVERT, refuse_pickle
from tunesmith.models.starter import ensure_starter
from tunesmith.track.run_dir import is_run

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,120}\Z")
WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.txt"]
UNWANTED = ["*/*", "*.index.json.lock"]
BUSY = (429, 500, 502, 503, 504)
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a busy hub is asked again
FIELD = "model.path"
STARTER = Fix("use the small model that comes with Tunesmith: starter", {FIELD: "starter"})
FINAL = ("adapter", "model")  # where a finished run keeps its weights


def locate(path: str, revision: str | None = None, progress: Progress | None = None) -> Path:
    """The local folder that holds config.json (or adapter_config.json) and safetensors weights; a run's final ones.

    Raises ModelError E086 when there is no such model, Unsafe E085 when it has only pickles, MachineError E087 when
    the hub cannot be reached.
    """
    if path == "starter":
        return ensure_starter(progress)
    local = Path(path).expanduser()
    if local.is_dir():
        return plain(in_run(local) if is_run(local) else checked(local), progress)
    if local.is_file():
        if is_gguf(local):
            return locate_gguf(local, progress)
        refuse_pickle(local)
        raise ModelError(
            "E086",
            f"{path} is not a model: it is a file, but not GGUF",
            where=Where(str(local), field=FIELD),
            fixes=["give the folder that holds config.json and the safetensors files"],
        )
    check_hub_id(path, revision)
    return plain(fetch_from_hub(path, revision), progress)


def in_run(run: Path) -> Path:
    """The adapter or the model that a finished run wrote."""
    found = next((run / name for name in FINAL if (run / name).is_dir()), None)
    if found is not None:
        return checked(found)
    raise ModelError(
        "E086",
        f"{run} is a run that has written no final weights yet",
        where=Where(str(run), field=FIELD),
        fixes=[
            Fix("let it train to its end", command=f"tunesmith runs resume {shlex.quote(str(run))}"),
            Fix("merge its newest checkpoint", command=f"tunesmith merge {shlex.quote(str(run))} OUT --weights newest"),
        ],
    )


def checked(folder: Path) -> Path:
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Weights that may be read, and the settings that say what they are; Unsafe E540 or E541 for what may not."""
    check_contained(folder)
    if not any(folder.glob("*.safetensors")):
        refuse_pickles(folder)
        message = f"{folder} holds no safetensors weights"
        files = [Fix(f"name the file: {path}", {FIELD: str(path)}) for path in sorted(folder.glob("*.gguf"))[:3]]
        name = "name the folder that holds config.json and *.safetensors"
        raise ModelError("E086", message, where=Where(str(folder), field=FIELD), fixes=[*files, name, STARTER])
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise ModelError("E084", f"{folder} holds no config.json", where=Where(str(folder), field=FIELD))


def check_hub_id(path: str, revision: str | None) -> None:
    """ModelError E086 for anything that is not owner/name, long before it could become part of a path or an address."""
    if not HUB_ID.match(path) or ".." in path or "--" in path:
        looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
        what = (
            "there is no such file or folder" if looks_local else "it is no folder here, and not a hub id (owner/name)"
        )
        run = Path("runs", path)
        named = HUB_ID.match(f"runs/{path}") is not None and is_run(run)
        if path == "last" and not named:
            what = "`last` is the newest run below runs/, and there is none in this folder"
        meant = [Fix(f"name the run by its folder: {run}", {FIELD: str(run)})] if named else []
        raise ModelError(
            "E086",
            f"no model {path[:120]!r}: {what}",
            where=Where(field=FIELD),
            fixes=[
                *meant,
                STARTER,
                "check the path",
            ],
        )
    if revision is not None and (not REVISION.match(revision) or ".." in revision):
        message = f"not a commit, branch or tag: {revision[:120]!r}"
        raise ModelError("E086", message, where=Where(field="model.revision"))


def fetch_from_hub(repository: str, revision: str | None) -> Path:
    """The snapshot folder in the hub's own cache; interrupted downloads continue, finished ones need no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
            local_files_only=not hub_answers(repository, revision),
        )
    except GatedRepoError as error:
        fixes = ["accept the model's terms on its page", Fix("then log in", command="hf auth login")]
        message = f"{repository} is gated: its owner wants you to accept terms first"
        raise ModelError("E086", message, where=Where(field=FIELD), fixes=fixes) from error
    except RevisionNotFoundError as error:
        message = f"{repository} has no revision {revision!r}"
        raise ModelError("E086", message, where=Where(field="model.revision")) from error
    except RepositoryNotFoundError as error:
        fixes = ["check the spelling", Fix("log in if it is private", command="hf auth login")]
        message = f"the hub knows no model {repository}"
        raise ModelError("E086", message, where=Where(field=FIELD), fixes=fixes) from error
    except Exception as error:  # the client passes on whatever its HTTP library raises
        raise MachineError(
            "E087",
            f"{repository} could not be fetched from the hub",
            where=Where(field=FIELD),
            evidence=[type(error).__name__],
            fixes=[
                Fix("connect to the network and run the command again; what is finished is kept"),
                Fix("give a folder: model.path=FOLDER"),
                STARTER,
            ],
        ) from error
    found = Path(folder)
    if not any(found.glob("*.safetensors")):
        raise ModelError(
            "E086",
            f"{repository} has no safetensors weights; pickled ones are never fetched",
            where=Where(field=FIELD),
            fixes=["choose a copy of the model with safetensors weights", CONVERT],
        )
    check_folder(found)
    return found


def hub_answers(repository: str, revision: str | None) -> bool:
    """Whether the hub says anything in time: a download asks without a limit. What it refuses is an answer too.

    A hub that is busy is asked again, later each time.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    for wait in WAITS:
        try:
            HfApi().model_info(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            return True
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in BUSY:
                return True
        except Exception:  # the client passes on whatever its HTTP library raises
            return False
        time.sleep(wait)
    return True
