"""Commands over several scenes: here, in processes on this machine, or on a cluster; and how they are told of."""

from __future__ import annotations

import functools
import glob
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from difixcli import console
from difixcli.cli.checking import check_options
from difixcli.cli.inputs import check_device
from difixcli.cli.lines import words
from difixcli.cli.requests import Request, options_of, parameters_of
from difixcli.cluster.jobs import DONE, FAILED, RUNNING, WAITING, Job, Jobs, counted, eta, table_row
from difixcli.cluster.worker import HELD, JOB, Worker
from difixcli.errors import InputError, unknown
from difixcli.runs import JOBS, Run, file_name, read_json, run_record
from difixcli.wording import counted as with_noun

if TYPE_CHECKING:
    from difixcli.cluster.submit import Wishes

CLUSTER = "Several scenes and clusters"
_PACE = 2.0
_TOLD_EVERY = 10.0

_WISHES = ("partition", "account", "time", "cpus", "memory")
"""Options that only SLURM heeds, as `submit.Wishes` has them too."""


@dataclass(frozen=True, kw_only=True)
class ClusterRequest(Request):
    """What a command over any number of scenes is asked for beside its own: where they are worked on, and how many may
    fail.
    """

    cluster: Annotated[
        str | None,
        typer.Option(
            help="slurm: one array, a job a scene. local: processes on this machine.", rich_help_panel=CLUSTER
        ),
    ] = None
    scenes_per_job: Annotated[
        int, typer.Option(help="Scenes that one job of SLURM's makes.", min=1, rich_help_panel=CLUSTER)
    ] = 1
    max_running: Annotated[
        int | None,
        typer.Option(help="Jobs at a time, at most; of local processes 1 by default.", min=1, rich_help_panel=CLUSTER),
    ] = None
    max_failed: Annotated[
        int | None,
        typer.Option(
            help="Begin nothing more, and end with exit code 2 in place of 3, when more scenes have failed.",
            min=0,
            rich_help_panel=CLUSTER,
        ),
    ] = None
    partition: Annotated[str | None, typer.Option(help="SLURM's.", rich_help_panel=CLUSTER)] = None
    account: Annotated[str | None, typer.Option(help="SLURM's.", rich_help_panel=CLUSTER)] = None
    time: Annotated[
        str | None,
        typer.Option(
            help="A job's time, as 90 (minutes), 12:00:00 or 1-00; one that runs out goes on later.",
            rich_help_panel=CLUSTER,
        ),
    ] = None
    gpus: Annotated[int | None, typer.Option(help="GPUs of a job.", min=0, rich_help_panel=CLUSTER)] = None
    cpus: Annotated[int | None, typer.Option(help="CPUs of a job.", min=1, rich_help_panel=CLUSTER)] = None
    memory: Annotated[float | None, typer.Option(help="Memory of a job, in GiB.", min=0.1, rich_help_panel=CLUSTER)] = (
        None
    )
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="Any option of sbatch, as constraint=a100; repeatable.", rich_help_panel=CLUSTER),
    ] = None
    wait: Annotated[
        bool, typer.Option("--wait", help="Show one table until the cluster is done.", rich_help_panel=CLUSTER)
    ] = False

    @property
    def of_several(self) -> bool:
        """Whether it says by these options that it is over scenes."""
        return self.cluster is not None or self.max_failed is not None

    @property
    def wishes(self) -> Wishes:
        """What is asked of the cluster, where one is named."""
        from difixcli.cluster.submit import Wishes

        assert self.cluster is not None
        own = {name: getattr(self, name) for name in (*_WISHES, "scenes_per_job", "max_running", "gpus")}
        return Wishes(self.cluster, **own | {"sbatch": self.sbatch or []})

    def validate(self) -> None:
        self._check_cluster()
        super().validate()

    def _check_cluster(self) -> None:
        """InputError for options that say nothing."""
        from difixcli.cluster.submit import CLUSTERS, minutes

        of_slurm = self.given(*_WISHES, "sbatch", "scenes_per_job")
        if self.cluster is None:
            if said := [*of_slurm, *self.given("max_running", "gpus", "wait")]:
                raise InputError(f"{said[0]} is for a cluster; name it with --cluster slurm or --cluster local.")
        elif self.cluster not in CLUSTERS:
            raise unknown("cluster", self.cluster, CLUSTERS)
        elif self.cluster == "local" and of_slurm:
            raise InputError(f"{of_slurm[0]} is SLURM's and says nothing to --cluster local; leave it out.")
        if self.time is not None:
            minutes(self.time)


def over_scenes(argument: str, default: str | None, several_methods: bool = False) -> Callable[..., Any]:
    """A command over one scene (or run, or video) made one over any number: its `argument` takes folders, globs and
    @LIST, and with `several_methods` its --method may be repeated.

    Several are jobs, each in a process of its own, that write into OUTPUT/NAME, or OUTPUT/NAME/METHOD. So is one where
    the line says that it is over scenes (a glob, @LIST, --cluster, --max-failed) or OUTPUT holds such a line already:
    what a script names is laid out alike however many there are. Else one is what it was.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = []
        for one in signature.parameters.values():
            changed = one
            if one.name == argument:
                info = copy(one.annotation.__metadata__[0])
                info.help += " Several, globs and @LIST (a file with one a line) make a folder each in --output."
                kind = Annotated[list[str] | None if default else list[str], info]  # type: ignore[valid-type]
                changed = one.replace(annotation=kind, default=None if default else one.default)
            elif several_methods and one.name == "method":
                info = copy(one.annotation.__metadata__[0])
                info.help += " Repeatable."
                changed = one.replace(annotation=Annotated[list[str] | None, info])
            parameters.append(changed)
        kind = get_args(signature.parameters[argument].annotation)[0]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            asked = ClusterRequest(**{key: values.pop(key) for key in options_of(ClusterRequest)})
            asked.validate()
            specs = values[argument] or [default]
            methods = (values["method"] or [None]) if several_methods else [None]
            over = len(specs) > 1 or len(methods) > 1 or _stands_for_several(specs[0]) or asked.of_several
            missing: list[str] = []
            if not several_methods:
                named = [Path(spec) for spec in specs]
                runs, missing = finished_runs(named)
                if not runs:
                    raise none_finished(missing)
                over = over or runs != named
                specs = [str(run) for run in runs]
            if not over and not _holds_several(values["output"], command.__name__):
                values |= {argument: kind(specs[0])} | ({"method": methods[0]} if several_methods else {})
                with claimed():
                    command(**values)
                return
            if asked.cluster != "slurm":  # whose machines may have what this one has not
                check_device(values["device"])
            output = (values["output"] or Path("outputs") / command.__name__).expanduser()
            scenes = _scenes(specs) if several_methods else _sources(specs, _known(output))
            made = {}
            for name, spec in scenes.items():
                for method in methods:
                    key = file_name(name) if not several_methods else f"{file_name(name)}-{method or 'splatfacto'}"
                    made[key] = (spec, method, file_name(name))
            for method in methods if several_methods else [None]:
                own = {"method": method} if several_methods else {}
                check_options(
                    functools.partial(command, **values | {argument: kind(spec)} | own) for spec in scenes.values()
                )
            if several_methods:
                _check_settings(methods, values["settings"] or [], started=values["start"] is not None)
            _several(command.__name__, signature, values, argument, output, made, several_methods, asked, missing)

        return _signed(run, parameters)

    return decorate


def _several(
    command: str,
    signature: inspect.Signature,
    values: dict[str, Any],
    argument: str,
    output: Path,
    made: Mapping[str, tuple[str, str | None, str]],
    several_methods: bool,
    asked: ClusterRequest,
    missing: Sequence[str],
) -> None:
    """Run a command over one scene as jobs over several."""
    held = None if values["force"] else run_record(output)
    if held is not None and held["command"] == command:
        raise InputError(
            f"{output} is one run itself, where a line over several would make a folder each; choose another --output, "
            "or replace it with --force."
        )
    common = words(signature, values, (argument, "method", "output", "force", "as_json"))
    run = Run.open(output, _several_of(command), {"line": common}, {}, values["force"], shared=True)
    lines = {}
    for key, (spec, method, name) in made.items():
        folder = run.folder / name / (method or "splatfacto") if several_methods else run.folder / name
        own = {argument: spec, "output": folder} | ({"method": method} if several_methods else {})
        lines[key] = [command, *words(signature, own), *common]
    outcome = work(run.folder, lines, command, asked)
    if outcome is None:  # handed out
        if missing:
            console.warn(f"Missing in this: {', '.join(missing)}.")
        found = {"output": str(run.folder), **({"missing": list(missing)} if missing else {})}
        console.finish(found, values["as_json"])
        return
    results = {}
    for job in outcome:
        if job.state == DONE and job.output is not None:
            results[job.name] = read_json(job.output / "run.json")["results"]
    if all(job.state in (DONE, FAILED) for job in Jobs(run.folder)):
        run.finish({"failed": [job.name for job in Jobs(run.folder) if job.state == FAILED]})
    end(run.folder, outcome, {"results": results}, asked.max_failed, values["as_json"], missing)


def finished_runs(named: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """What was named, with finished runs in place of lines of difix distill over several scenes; names of the other
    runs. `@LIST` stands for its lines, a glob for what it finds.
    """
    from difixcli.curation.scene_list import listed

    runs: list[Path] = []
    missing: list[str] = []
    for spec in named:
        for one in map(Path, listed(str(spec), scenes=False)):
            # a run that was measured by jobs has those of difix eval in it
            made = [job for job in Jobs(one) if job.line[:1] == ["distill"]] if (one / JOBS).is_dir() else []
            if not made:
                runs.append(one)
            for job in made:
                if job.state == DONE and job.output is not None:
                    runs.append(job.output)
                else:
                    missing.append(job.name)
    return runs, missing


def none_finished(missing: Sequence[str]) -> InputError:
    """The error where all that was named is `missing`."""
    return InputError(f"None of the runs is finished ({', '.join(missing)}); see what became of them: difix status.")


def _check_settings(methods: Sequence[str | None], settings: Sequence[str], started: bool) -> None:
    """Raises InputError for settings that a method has not, of which every job would die.

    Without a method, what was `started` with says which it is, and its own job checks it.
    """
    named = [method or "splatfacto" for method in methods if method is not None or not started]
    if not settings or not named:
        return
    console.say("Loading nerfstudio …")
    from difixcli.reconstruction.configuration import check_settings

    for method in named:
        check_settings(method, settings)


def work(folder: Path, lines: Mapping[str, Sequence[str]], name: str, asked: ClusterRequest) -> list[Job] | None:
    """Do jobs, or hand them out; their records at the end, or None where the end is not waited for."""
    jobs = Jobs(folder)
    jobs.add(lines, str(Path.cwd()))
    attempts = {one: job.attempt for one in lines if (job := jobs.read(one)) is not None and job.state != DONE}
    done = len(lines) - len(attempts)
    console.say(f"Output: {folder}")
    console.say(with_noun(len(lines), "job") + (f", {done} of them done before" if done else ""))
    if attempts and asked.cluster is not None:
        from difixcli.cluster.submit import submit

        number = submit(folder, attempts, asked.wishes, asked.max_failed, f"difix-{name}")
        console.say(
            f"{'Processes' if asked.cluster == 'local' else 'SLURM job'} {number}: {with_noun(len(attempts), 'job')}"
        )
        if not asked.wait:
            console.say(f"How far they are: difix status {folder}")
            console.out.print(number, markup=False)
            return None
        watch(folder, list(lines), attempts)
    elif attempts:
        Worker(folder, attempts, asked.max_failed)(_teller(jobs))
    return [job for job in jobs.seen() if job.name in lines]


def end(
    folder: Path,
    outcome: Sequence[Job],
    found: Mapping[str, Any],
    max_failed: int | None,
    as_json: bool,
    missing: Sequence[str],
) -> None:
    """Print what became of jobs; exit code 3 where some failed or were left, or what they should be made of is
    `missing`; 2 where more than may have failed.
    """
    jobs = Jobs(folder)
    bad = [job for job in outcome if job.state != DONE]
    failed = [job for job in bad if job.state == FAILED]
    told: dict[str, Any] = {**found, "output": str(folder), "jobs": {job.name: table_row(job) for job in outcome}}
    if not bad and not missing:
        console.finish(told, as_json, jobs_table(outcome))
        return
    said = []
    if bad:
        said.append(f"{len(bad)} of {len(outcome)} jobs did not end well; the same line again tries only them.")
    if missing:
        said.append(f"Missing in this: {', '.join(missing)}.")
        told["missing"] = list(missing)
    message = " ".join(said)
    console.finish({**told, "error": message}, as_json, jobs_table(outcome))
    tell_failures(jobs, bad)
    console.fail(message)
    raise typer.Exit(2 if max_failed is not None and len(failed) > max_failed else 3)


def tell_failures(jobs: Jobs, bad: Sequence[Job]) -> None:
    """Each job that failed, why, and the last lines of its log."""
    for job in bad:
        console.warn(f"{job.name}: {job.state}" + (f": {job.message}" if job.message else ""))
        if tail := jobs.tail(job.name):
            console.say("\n".join(f"    {line}" for line in tail))
            console.say(f"    ({jobs.log(job.name)})")


@contextmanager
def claimed() -> Iterator[None]:
    """Within a job's process: claim the job and report on it; ends the process where another is at work on it."""
    folder, _, name = os.environ.get(JOB, "").rpartition(":")
    if not name:
        yield
        return
    with Jobs(Path(folder)).working(name) as report:
        if report is None:
            raise typer.Exit(HELD)
        console.watcher = report.progress
        try:
            yield
        finally:
            console.watcher = None


def watch(folder: Path, names: Sequence[str], attempts: Mapping[str, int]) -> None:
    """Show one table until all jobs are done or have failed, or the cluster has none of them left."""
    from difixcli.cluster.submit import at_work

    jobs = Jobs(folder)
    tell = _teller(jobs)

    def look() -> list[Job]:
        return [job for job in jobs.seen() if job.name in names]

    def over(seen: Sequence[Job]) -> bool:
        return all(
            job.state == DONE or (job.state == FAILED and job.attempt > attempts.get(job.name, -1)) for job in seen
        )

    asked = time.monotonic()
    live = Live(console=console.err, auto_refresh=False, transient=True) if console.err.is_terminal else None
    with live or nullcontext():
        while not over(seen := look()):
            if live is not None:
                live.update(jobs_table(seen), refresh=True)
            for job in seen if live is None else ():
                tell(job)
            if time.monotonic() - asked > _TOLD_EVERY:
                asked = time.monotonic()
                if at_work(folder) is False and not over(look()):
                    time.sleep(_PACE)  # what they wrote last may still be on its way
                    break
            time.sleep(_PACE)
    for job in look() if live is None else ():
        tell(job)


def jobs_table(jobs: Sequence[Job]) -> Table:
    """A row a job: state, what it is doing, step, rate, ETA and node."""
    states = ", ".join(f"{count} {state}" for state, count in counted(jobs).items())
    table = Table(title=f"Jobs: {states}", title_justify="left")
    table.add_column("scene", overflow="fold")
    table.add_column("state")
    table.add_column("doing", overflow="fold")
    for name in ("step", "rate", "ETA"):
        table.add_column(name, justify="right")
    table.add_column("node")
    colors = {DONE: "green", FAILED: "red", RUNNING: "cyan"}
    for job in jobs:
        going = job.state == RUNNING
        left = eta(job)
        color = colors.get(job.state)
        table.add_row(
            escape(job.name),
            f"[{color}]{job.state}[/]" if color else job.state,
            escape(job.label if going else job.message),
            f"{job.step}/{job.total}" if going and job.total else "",
            console.rate(job.rate) if going and job.rate else "",
            console.span(left) if left is not None else "",
            escape(job.node),
        )
    return table


def _teller(jobs: Jobs) -> Callable[[Job], None]:
    """Says a job's changes of state, and now and then how far it is where that has changed, a line each."""
    last: dict[str, tuple[str, str, float]] = {}

    def tell(job: Job) -> None:
        state, before, when = last.get(job.name, (WAITING, "", 0.0))
        now = time.monotonic()
        if job.state == state and (job.state != RUNNING or now - when < _TOLD_EVERY):
            return
        said = {RUNNING: f" on {job.node}, log {jobs.log(job.name)}", FAILED: f": {job.message}"}.get(job.state, "")
        if job.state == RUNNING and job.total:
            said = f": {job.label} {job.step}/{job.total}"
        if (job.state, said) != (state, before):
            console.say(f"{job.name}: {job.state}{said}")
        last[job.name] = (job.state, said, now)

    return tell


def _signed(run: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """The function with these parameters and the options over several scenes, as typer reads them."""
    signed = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*parameters, *parameters_of(ClusterRequest))]
    del run.__wrapped__  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(signed)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in signed}
    return run


def _stands_for_several(spec: str) -> bool:
    return spec.startswith("@") or (glob.has_magic(spec) and not Path(spec).exists())


def _several_of(command: str) -> str:
    """What the run of a line over several calls its command."""
    return f"{command} over scenes"


def _holds_several(output: Path | None, command: str) -> bool:
    """Whether an output holds a line over several, to which one more is added."""
    held = None if output is None else run_record(output.expanduser())
    return held is not None and held["command"] == _several_of(command)


def _scenes(specs: Sequence[str]) -> dict[str, str]:
    from difixcli.curation.scene_list import expand_scenes

    return expand_scenes(specs)


def _known(output: Path) -> dict[Path, str]:
    """The names of an output's jobs, by what each is of."""
    return {_whole(job.line[1], job.directory): job.name for job in Jobs(output) if len(job.line) > 1}


def _whole(path: str, directory: str = "") -> Path:
    return Path(os.path.abspath(Path(directory) / Path(path).expanduser()))


def _sources(specs: Sequence[str], known: Mapping[Path, str]) -> dict[str, str]:
    """Runs, folders and films by names that tell them apart: the last parts of their paths. What has a name already
    keeps it.
    """
    from difixcli.curation.scene_list import listed

    paths = {_whole(path): path for spec in specs for path in listed(spec, scenes=False)}
    fresh = [path for path in paths if path not in known]
    for count in range(1, max((len(path.parts) for path in fresh), default=1) + 1):
        names = {file_name("-".join(path.parts[-count:])): path for path in fresh}
        if len(names) == len(fresh) and not names.keys() & set(known.values()):
            named = dict(known) | {path: name for name, path in names.items()}
            return {named[path]: spec for path, spec in paths.items()}
    raise InputError(f"{paths[fresh[0]]} and another cannot be told apart; name each once.")
