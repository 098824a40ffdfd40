"""`difix status`: how far a line over several scenes is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from difixcli import console
from difixcli.cli.options import JsonOption


@console.handled
def status(
    folder: Annotated[Path, typer.Argument(help="The --output of a line over several scenes.")],
    as_json: JsonOption = False,
) -> None:
    """Show who works on which scene of several, how far each is, and which have failed."""
    from difixcli.cli.several import jobs_table, tell_failures
    from difixcli.cluster.jobs import DONE, FAILED, counted, find_jobs, table_row
    from difixcli.cluster.submit import at_work

    jobs = find_jobs(folder)
    seen = jobs.seen()
    going = at_work(folder)
    told: dict[str, Any] = {"output": str(jobs.output), "jobs": {job.name: table_row(job) for job in seen}}
    told |= {"states": counted(seen), "at_work": going}
    console.finish(told, as_json, jobs_table(seen))
    tell_failures(jobs, [job for job in seen if job.state == FAILED])
    if going is False and any(job.state not in (DONE, FAILED) for job in seen):
        console.warn("The cluster has no job of it left, but not all is done; run the same line again.")
