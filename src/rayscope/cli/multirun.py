"""Sweeper: -m runs every job; one that fails does not stop the others, and is named at the end."""

import copy
import itertools
import signal
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.plugins import sweeper as plugin
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from rayscope.cli.checks import check
from rayscope.cli.options import shown
from rayscope.cli.refusals import refused
from rayscope.console import say
from rayscope.errors import CommandError, explain, one_line
from rayscope.stopping import Stopped

BASIC = "hydra._internal.core_plugins.basic_{0}.Basic{1}"


def install() -> None:
    """From now on hydra/sweeper=basic, hydra's default, is the Sweeper here."""
    Plugins.instance().class_name_to_class[BASIC.format("sweeper", "Sweeper")] = Sweeper


class Sweeper(plugin.Sweeper):
    """Replaces hydra's basic sweeper, with any launcher. It writes no folder and no multirun.yaml.

    Every job is composed and checked before the first one runs. Raises CommandError before any work if no job can run,
    or if two would write into one folder, and at the end if a job failed; Stopped, naming the jobs that are left, if
    the sweep is stopped.
    """

    context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None):
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        jobs = self.jobs([*(f"{key}={values}" for key, values in self.params.items()), *arguments])
        left = dict(zip(names_of(jobs), enumerate(jobs), strict=True))
        failed = self.check_all(left)
        for name, line in failed.items():
            say(f"rayscope: {name} cannot run: {line}")
            del left[name]
        try:
            self.launch(left, failed)
        except KeyboardInterrupt as stopped:
            number = getattr(stopped, "number", signal.SIGINT)
            others = f"{len(left)} of {len(jobs)} jobs left: {', '.join(left)}"
            raise Stopped(number, f"stopped with {others}; the same command does them") from None
        if failed:
            for name, line in failed.items():
                say(f"rayscope: {name} failed: {line}")
            raise CommandError(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}")

    @property
    def command(self) -> str:
        return str(self.config.hydra.job.config_name)

    def jobs(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of each job: every combination of the values given; a key's last values count."""
        values: dict[str, list[str]] = {}
        for override in OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(arguments):
            key = override.get_key_element()
            if not override.is_sweep_override():
                values[key] = [override.input_line or ""]
            elif override.is_discrete_sweep():
                values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            else:
                raise CommandError(f"{override.input_line}: this sweep has no list of values; give them, as in k=4,8")
        return [list(job) for job in dict.fromkeys(itertools.product(*values.values()))]

    def launch(self, left: dict[str, tuple[int, list[str]]], failed: dict[str, str]) -> None:
        """Runs the jobs and takes those that ended out of `left`:
        with hydra's own launcher one by one, else all at once.
        """
        basic = self.config.hydra.launcher._target_ == BASIC.format("launcher", "Launcher")
        for names in [[name] for name in left] if basic else [list(left)]:
            try:
                ended = self.launcher.launch([left[name][1] for name in names], initial_job_idx=left[names[0]][0])
            except Exception as error:  # of the launcher: a worker was killed
                why = (
                    explain(error) or f"a job's process ended, perhaps for lack of memory ({one_line(str(error)):.100})"
                )
                failed.update(dict.fromkeys(names, str(why)))
                continue
            for name, job in zip(names, ended, strict=True):
                error = job.return_value if job.status == JobStatus.COMPLETED else job._return_value
                if isinstance(error, Exception):
                    failed[name] = str(error)
                del left[name]

    def check_all(self, jobs: Mapping[str, tuple[int, list[str]]]) -> dict[str, str]:
        """{name: what is wrong} of the jobs that cannot run.
        Raises CommandError if none can, or if two have one `out`.
        """
        failed: dict[str, str] = {}
        outs: dict[str, list[str]] = {}
        for name, (number, job) in jobs.items():
            try:
                if out := self.check(number, job):
                    outs.setdefault(str(out), []).append(name)
            except (HydraException, OmegaConfBaseException) as error:
                failed[name] = refused(self.command, job, self.config, error)
            except Exception as error:
                failed[name] = str(explain(error) or f"{type(error).__name__}: {error}")
        if len(failed) == len(jobs):
            raise CommandError(next(iter(failed.values())))
        for out, names in outs.items():
            if len(names) > 1:
                varied = "_".join(f"${{{part.partition('=')[0]}}}" for part in names[0].split())
                listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                raise CommandError(
                    f"-m: {len(names)} jobs ({listed}) have one out, {out}; "
                    f"give each its own, such as 'out={out}_{varied}'"
                )
        return failed

    def check(self, number: int, job: Sequence[str]) -> Any:
        """The job's `out`. Raises what is wrong with its configuration."""
        setup_globals()
        config = self.context.config_loader.load_sweep_config(self.config, list(job))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            task: DictConfig = copy.deepcopy(config)
            with open_dict(task):
                del task["hydra"]
            check(self.command, task)
            return task.get("out")
        finally:
            HydraConfig.instance().cfg = before


def names_of(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Each job by the arguments in which it differs from the others;
    by its number as well if that is too long to show.
    """
    varied = [len(set(values)) > 1 for values in zip(*jobs, strict=True)]
    named = [" ".join(text for text, differs in zip(job, varied, strict=True) if differs) for job in jobs]
    short = [shown(name or "the only job", 120) for name in named]
    return short if len(set(short)) == len(short) else [f"{n}: {name}" for n, name in enumerate(short)]


def of_job(error: Exception) -> CommandError:
    """What a job gives back of its error, which must be picklable: a bug's traceback is printed where it happens."""
    if isinstance(error, CommandError):
        return error
    say("rayscope: this is a bug in rayscope; please report it with the lines below")
    traceback.print_exception(error)
    return CommandError(f"unexpected {type(error).__name__}: {error}")
