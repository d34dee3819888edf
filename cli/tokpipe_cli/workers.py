"""Work through inputs: in this process, or each in one of several; results come in input order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokpipe.errors import ResourceError, TokpipeError
from tokpipe_cli.boundary import os_problem, unexpected

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from tokpipe.run import Job
    from tokpipe_cli.progress import Meter
    from tokpipe_cli.request import Request

#: Seconds between two progress messages of a worker.
_EVERY = 0.1
#: Seconds a worker gets to clean up when the run is interrupted.
_GRACE = 5.0


@dataclass(frozen=True, slots=True)
class Task:
    """One input and the name of its output."""

    source: Path
    target: Path


@dataclass(slots=True)
class Outcome:
    """What became of one input.

    Attributes:
        record: The ``item`` event's fields.
        error: None unless ``record["status"]`` is failed.
        trace: Traceback of ``error`` as text.
    """

    index: int
    record: dict[str, Any]
    error: TokpipeError | None = None
    trace: str = ""


def run_tasks(
    tasks: list[Task], request: Request, job: Job, meter: Meter, workers: int = 1
) -> Iterator[Outcome]:
    """Compress every input; yields outcomes in the order of ``tasks``, as soon as they are due."""
    if workers <= 1 or len(tasks) <= 1:
        for index, task in enumerate(tasks):
            meter.begin(index)
            outcome = work(index, task, job, lambda *a, i=index: meter.report(i, *a))
            meter.finish(index)
            yield outcome
        return
    pool = _Pool(tasks, request, meter, min(workers, len(tasks)))
    try:
        yield from pool.outcomes()
    finally:
        pool.close()


def work(
    index: int, task: Task, job: Job, report: Callable[[str, float, float | None], None] | None
) -> Outcome:
    """Compress one input; whatever goes wrong with it stays with it."""
    from tokpipe.run import compress_file

    began = time.perf_counter()
    try:
        record = compress_file(task.source, task.target, job=job, progress=report)
        return Outcome(index, record.to_dict())
    except TokpipeError as error:
        problem, trace = error, traceback.format_exc()
    except OSError as error:
        problem, trace = os_problem(error), traceback.format_exc()
    except Exception as error:  # noqa: BLE001 - the item loop: a bug in one input stops no other
        problem, trace = unexpected(error), traceback.format_exc()
    record_of = failed_record(task.source, task.target, job)
    record_of["seconds"]["total"] = round(time.perf_counter() - began, 4)
    return Outcome(index, record_of, problem, trace)


def failed_record(source: Path, target: Path | None, job: Job) -> dict[str, Any]:
    """The ``item`` fields of an input that gave nothing."""
    from tokpipe.run import RunRecord

    record = RunRecord(
        input=str(source), output=str(target) if target else "", status="failed",
        layout=job.options.layout, recipe=job.name, budget=str(job.budget) if job.budget else None,
    )  # fmt: skip
    return record.to_dict()


class _Pool:
    """Processes that take one input at a time; one that dies costs only the input it held."""

    def __init__(self, tasks: list[Task], request: Request, meter: Meter, count: int) -> None:
        self.tasks, self.request, self.meter, self.count = tasks, request, meter, count
        self.context = multiprocessing.get_context("spawn")
        self.waiting = list(reversed(range(len(tasks))))
        self.busy: dict[Connection, tuple[BaseProcess, int]] = {}
        self.ready: dict[int, Outcome] = {}

    def outcomes(self) -> Iterator[Outcome]:
        for _ in range(self.count):
            self._start()
        for index in range(len(self.tasks)):
            while index not in self.ready:
                self._listen()
            yield self.ready.pop(index)

    def close(self) -> None:
        """Ask every worker to stop and clean up; end the ones that do not."""
        for process, _ in self.busy.values():
            process.terminate()
        deadline = time.monotonic() + _GRACE
        for process, _ in self.busy.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _start(self) -> None:
        if not self.waiting:
            return
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.request), daemon=True)
        process.start()
        theirs.close()
        self._give(ours, process)

    def _give(self, line: Connection, process: BaseProcess) -> None:
        """Hand out the next input, or send the worker home."""
        if not self.waiting:
            self.busy.pop(line, None)
            line.close()
            process.join()
            return
        index = self.waiting.pop()
        self.busy[line] = (process, index)
        self.meter.begin(index)
        with contextlib.suppress(OSError):
            line.send((index, self.tasks[index]))

    def _listen(self) -> None:
        for line in wait(list(self.busy)):
            assert isinstance(line, Connection)  # noqa: S101 - only connections are waited for
            process, index = self.busy[line]
            try:
                message = line.recv()
            except (EOFError, OSError):
                self._died(line, process, index)
                continue
            if isinstance(message, Outcome):
                self._settle(message)
                self._give(line, process)
            else:
                self.meter.report(index, *message)

    def _died(self, line: Connection, process: BaseProcess, index: int) -> None:
        self.busy.pop(line)
        line.close()
        process.join()
        code = process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        task = self.tasks[index]
        error = ResourceError(
            f"the worker process ended with {how}", where=str(task.source),
            hint="it may have run out of memory: use fewer --workers", code="resource.worker",
        )  # fmt: skip
        self._settle(
            Outcome(index, failed_record(task.source, task.target, self.request.prepare()), error)
        )
        self._start()

    def _settle(self, outcome: Outcome) -> None:
        self.ready[outcome.index] = outcome
        self.meter.finish(outcome.index)


def _serve(line: Connection, request: Request) -> None:
    """A worker's life: inputs in, outcomes out, until the line closes."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        job = request.prepare()
        while True:
            index, task = line.recv()
            line.send(work(index, task, job, _throttled(line)))
    except (EOFError, OSError):
        return
    except KeyboardInterrupt:
        # The parent says what happened.
        os._exit(130)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _throttled(line: Connection) -> Callable[[str, float, float | None], None]:
    last = 0.0

    def report(stage: str, at: float, total: float | None) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            line.send((stage, at, total))

    return report
