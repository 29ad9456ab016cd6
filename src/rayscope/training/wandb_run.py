"""A run on W&B: one for training and evaluation, whose id is kept in the run's folder,
so that what is resumed goes on under it.
"""

import json
import logging
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from pydantic import ValidationError
from wandb.errors import AuthenticationError, UsageError

from rayscope.console import say
from rayscope.files import real, remove, write_whole
from rayscope.training.log import EDGES, TRAINING_LOG, Counts, Log, rows
from rayscope.training.wandb_file import mend

RECORD = "wandb.json"  # in the run's folder: id, project, entity of its W&B run, and the step of its last evaluation
LOCAL = "wandb"  # in the run's folder: W&B's own files
ANSWER = 20.0  # seconds that the server has to answer in at the start; WANDB_INIT_TIMEOUT says otherwise
UPLOAD = 120.0  # seconds that the end of a run may take to be uploaded; WANDB_FINISH_TIMEOUT says otherwise


class WandbRun(Log):
    """The W&B run of a folder. Options that are None are the environment's (WANDB_PROJECT,
    WANDB_NAME, ...), or W&B's own.

    A row of training is logged at step = tokens, an evaluation at a step above all before. W&B refuses a step that is
    behind it. After a kill, what W&B lacks (it writes and uploads every 15 seconds) is logged again from training.csv,
    and what it has, of what a resumed run repeats, is left out: each row is there once. Offline each process writes a
    file of its own; `wandb sync` uploads those of one id in the order in which they began.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
    ):
        super().__init__()
        self.project, self.entity, self.label, self.group, self.tags = project, entity, name, group, tags
        self.offline = offline
        self.run: Any = None  # none before it has begun, and if W&B is disabled
        self.done = 0  # the last step that W&B has of other processes
        self.written = self.broken = False

    def begin(self, folder: Path, config: dict[str, Any]) -> None:
        """Starts the W&B run of the folder, or goes on with it.

        Raises ValueError, one line with what to do, if W&B cannot be used:
        no key, no server, no permission, a wrong name.
        """
        self.folder, self.there = folder, entries(folder / LOCAL)
        self.kept = read(folder / RECORD)
        self.new, server = not self.kept, "its server"
        # W&B's own telemetry complains there if the server does not take it
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        try:
            settings = self.settings()
            server = settings.base_url
            if settings.mode == "disabled":
                return say("W&B: its mode is disabled, nothing is logged there")
            online = settings.mode not in ("offline", "dryrun")
            if online and not wandb.login(prompt=False, verify=False):
                raise AuthenticationError("no API key")
            identity = self.identity(settings)
            past = self.folder.glob(f"{LOCAL}/offline-run-*/run-{identity.get('id') or settings.run_id}.wandb")
            self.done = max(map(mend, past), default=0)
            self.run = wandb.init(config=config, dir=folder, resume="allow", **identity)
            self.run.define_metric("*", step_metric="tokens")
        except Exception as error:
            with suppress(Exception, SystemExit):
                wandb.teardown()
            self.withdraw()
            if isinstance(error, OSError):  # of the disk
                raise
            raise ValueError(what_to_do(error, server)) from error
        self.kept |= {"id": self.run.id, "project": self.run.project, "entity": self.run.entity or None}
        self.keep()
        if online:
            self.done = max(self.run.step - 1, 0)
        if not self.new:
            for row in rows(folder / TRAINING_LOG):
                self.write(*row)
        say(f"W&B: {self.run.url}" if online else f"W&B: offline; to upload: {self.upload()}")

    def settings(self) -> wandb.Settings:
        """W&B's settings for the process, not for the run alone: its telemetry asks those whether it is offline."""
        here: dict[str, Any] = {"silent": True, "console": "off", "finish_timeout_raises": True}
        if self.offline:
            here["mode"] = "offline"
        found = wandb.setup(settings=wandb.Settings(**here)).settings
        for name, seconds in (("init_timeout", ANSWER), ("finish_timeout", UPLOAD)):
            if name not in found.model_fields_set:
                setattr(found, name, seconds)
        return found

    def identity(self, settings: wandb.Settings) -> dict[str, Any]:
        """What `wandb.init` is told of the run: a sweep's agent decides in the environment,
        else the folder, else the options.
        """
        kept, told = self.kept, {"group": self.group, "tags": self.tags, "name": self.label}
        agent = settings.sweep_id or settings.run_id
        if self.label is None and not settings.run_name and (agent or not kept):
            told["name"] = real(self.folder).name
        if agent:
            self.kept = {}
        elif kept:
            for name in ("project", "entity"):
                asked = getattr(self, name)
                if asked and kept.get(name) and asked != kept[name]:
                    raise ValueError(
                        f"logger.{name}={asked}: {self.folder} is W&B run {kept['id']} of {name} {kept[name]}; "
                        "give that, "
                        f"or remove {self.folder / RECORD} to begin another W&B run"
                    )
            told["id"] = kept["id"]
        if not settings.sweep_id:
            told["project"] = self.project or self.kept.get("project") or settings.project or "rayscope"
            told["entity"] = self.entity or self.kept.get("entity") or settings.entity
        return told

    def write(self, tokens: int, scalars: dict[str, float], counts: Counts) -> None:
        charts = {
            name: wandb.Histogram(np_histogram=(count, EDGES)) for name, count in counts.items() if count is not None
        }
        if tokens > self.done:
            self.put({"tokens": tokens, **scalars, **charts}, tokens)

    def write_evaluation(self, tokens: int, scalars: dict[str, float]) -> None:
        if self.run is not None:
            self.kept["step"] = max(tokens + 1, self.kept.get("step", 0) + 1, self.run.step)
            self.put({"tokens": tokens, **scalars}, self.kept["step"])
            self.keep()

    def put(self, row: dict[str, Any], step: int) -> None:
        """What goes wrong on W&B's side from here on is said, once, and ends nothing."""
        if self.run is None or self.broken:
            return
        try:
            self.run.log(row, step=step)
            self.written = True
        except Exception as error:
            self.broken = True
            say(f"W&B: no more is logged there ({brief(error)}); the run goes on, its tables are in {self.folder}")

    def finish(self, failed: bool) -> None:
        """Marks the W&B run as finished or failed, and waits until it is uploaded.
        One that failed with no row is forgotten.
        """
        if self.run is None:
            return
        for end in (lambda: self.run.finish(exit_code=int(failed)), wandb.teardown):
            try:
                end()
            except (Exception, SystemExit) as error:
                if not self.broken:
                    say(f"W&B: the end of the run is not uploaded ({brief(error)}); to upload: {self.upload()}")
                self.broken = True
        if failed and self.new and not self.written:
            self.withdraw()

    def keep(self) -> None:
        write_whole(self.folder / RECORD, json.dumps(self.kept))

    def withdraw(self) -> None:
        """Takes away what this process has put into the run's folder."""
        for path in entries(self.folder / LOCAL) - self.there:
            remove(path)
        if self.new:
            (self.folder / RECORD).unlink(missing_ok=True)
        if not self.there and (self.folder / LOCAL).is_dir():
            (self.folder / LOCAL).rmdir()

    def upload(self) -> str:
        return f"wandb sync {shlex.quote(str(self.folder / LOCAL))}"


def entries(folder: Path) -> set[Path]:
    return set(folder.iterdir()) if folder.is_dir() else set()


def read(path: Path) -> dict[str, Any]:
    """The record of the W&B run; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(kept, dict) and isinstance(kept["id"], str) and isinstance(kept.get("step", 0), int)):
            raise ValueError
    except (ValueError, KeyError):
        raise ValueError(f"{path} is damaged; remove it to begin another W&B run") from None
    return kept


def brief(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def what_to_do(error: Exception, server: str) -> str:
    """One line for what was raised at the start."""
    if isinstance(error, ValidationError):
        (wrong, *_) = error.errors()
        name = "_".join(map(str, wrong["loc"]))
        return f"W&B's setting {name} (WANDB_{name.upper()}) is {wrong['input']!r}: {wrong['msg']}"
    if "project name" in str(error):
        return f"logger.project: {brief(error)}"
    if isinstance(error, UsageError) or not isinstance(error, wandb.Error):
        return f"W&B: {brief(error)}"
    said = brief(error)
    reason = (
        said.partition("while retrying: ")[2] or said.partition("resume status for run ")[2].partition(": ")[2] or said
    )
    if isinstance(error, AuthenticationError) or "error 401" in reason:
        remedy = "run `wandb login`, or set WANDB_API_KEY"
    elif re.search("error 40[34]|^input: ", reason):
        remedy = "give logger.entity= and logger.project= that your API key may write to"
    else:
        remedy = "see that this machine reaches that server (WANDB_BASE_URL)"
    return f"W&B at {server}: {reason}; {remedy}, or logger.offline=true and `wandb sync` later"
