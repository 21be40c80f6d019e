"""Work that a page asked for: in threads, few at once, with progress, and stopped when told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from geolatent.checks import check_integer, check_number

# seconds that work pauses once it has shown a first result
_MOMENT = 0.1

Work = Callable[["Job"], Any]


class StoppedError(Exception):
    """The job was stopped, by its page or because nobody asks for it any more."""


class BusyError(Exception):
    """More jobs wait than may."""


@dataclass(eq=False)
class Job:
    """A piece of work of one page.

    Attributes
    ----------
    kind
        What it is, such as "pair"; a page has one job of a kind.
    fraction
        Share that is done, in [0, 1]; None where that is not known.
    early
        A first, coarser result, or None.
    result, error
        What the work returned or raised, once ``done`` is set.
    """

    kind: str
    patience: float
    fraction: float | None = None
    early: Any = None
    result: Any = None
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)
    news: threading.Event = field(default_factory=threading.Event)
    taken: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)
    asked: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Let the work end at the next look."""
        self._stop.set()

    @property
    def seconds(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self.began

    @property
    def stopped(self) -> bool:
        """Whether it was stopped, or its page has not asked for it for too long."""
        return self._stop.is_set() or time.monotonic() - self.asked > self.patience

    def look(self) -> None:
        """Raise where the job is to end; called all the time by the work."""
        if self.stopped:
            raise StoppedError

    def show(self, early: object) -> None:
        """Offer a first result, and leave the processor for a moment to those who show it."""
        self.early = early
        self.news.set()
        self.taken.wait(_MOMENT)

    def wait(self, seconds: float) -> None:
        """Wait until it is done, or something is there to be shown."""
        self.asked = time.monotonic()
        if not self.done.is_set():
            self.news.wait(seconds)

    def run(self, work: Work) -> None:
        """Do the work; whatever is raised is kept for the page."""
        before = _JOB.set(self)
        try:
            self.look()
            self.result = work(self)
            self.fraction = 1.0
        except Exception as error:  # a decoder may raise anything, and the page is to say so
            self.error = error
        finally:
            _JOB.reset(before)
            self.done.set()
            self.news.set()


_JOB: ContextVar[Job | None] = ContextVar("job", default=None)


def look() -> None:
    """Raise `StoppedError` where the job that this thread works on is to end."""
    job = _JOB.get()
    if job is not None:
        job.look()


@contextmanager
def part(first: float, last: float) -> Iterator[Callable[[float], None]]:
    """Yield a function that tells the thread's job which share of a part of it is done."""
    job = _JOB.get()

    def tell(share: float) -> None:
        if job is not None:
            job.look()
            job.fraction = first + (last - first) * share

    tell(0.0)
    yield tell


class Jobs:
    """The jobs of all pages.

    Parameters
    ----------
    at_once
        Jobs that are worked on at once; others wait.
    waiting
        Jobs that may wait.
    patience
        Seconds after which the job of a page that does not ask for it ends. Browsers let a page in
        the background ask once a minute.

    Examples
    --------
    >>> jobs = Jobs(at_once=1)
    >>> job = jobs.submit("page", "sum", lambda job: sum(range(4)))
    >>> job.done.wait(10.0), job.result
    (True, 6)
    >>> jobs.close()
    """

    def __init__(self, at_once: int = 2, waiting: int = 16, patience: float = 90.0) -> None:
        self.at_once = check_integer("at_once", at_once)
        self.waiting = check_integer("waiting", waiting)
        self.patience = check_number("patience", patience, above=0.0)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="explorer")
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, str], Job] = {}

    def submit(self, page: str, kind: str, work: Work) -> Job:
        """Begin some work for a page, in place of what it asked for before of that kind.

        Raises
        ------
        BusyError
            Where too many jobs wait already.
        """
        job = Job(kind, self.patience)
        with self._lock:
            former = self._jobs.pop((page, kind), None)
            if former is not None:
                former.stop()
            # those that nobody asks for are forgotten
            self._jobs = {key: j for key, j in self._jobs.items() if not j.stopped}
            open_jobs = sum(not other.done.is_set() for other in self._jobs.values())
            if open_jobs >= self.at_once + self.waiting:
                raise BusyError(
                    f"{open_jobs} solves are under way or wait; try again when some have ended."
                )
            self._jobs[page, kind] = job
        self._threads.submit(job.run, work)
        return job

    def of(self, page: str) -> list[Job]:
        """Return the jobs of a page, which asks for them."""
        with self._lock:
            jobs = [job for (owner, _), job in self._jobs.items() if owner == page]
        for job in jobs:
            job.asked = time.monotonic()
        return jobs

    def forget(self, page: str, job: Job) -> None:
        """Drop a job whose result has been taken."""
        with self._lock:
            if self._jobs.get((page, job.kind)) is job:
                del self._jobs[page, job.kind]

    def stop(self, page: str) -> None:
        """Stop all jobs of a page."""
        for job in self.of(page):
            job.stop()

    def close(self) -> None:
        """Stop all jobs and end the threads."""
        with self._lock:
            for job in self._jobs.values():
                job.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)


def in_words(error: Exception) -> str:
    """Return an error as a sentence for a page.

    Errors of the package are sentences already; those of a decoder are told by their type.

    Examples
    --------
    >>> in_words(ValueError("Parameter `z` should be finite. Found `z = nan`."))
    'Parameter `z` should be finite. Found `z = nan`.'
    >>> in_words(KeyError("layer"))
    "The model or a step of the work failed. KeyError: 'layer'"
    """
    if isinstance(error, StoppedError):
        return "Stopped."
    text = " ".join(str(error).split())
    if isinstance(error, BusyError) or text.startswith("Parameter `"):
        return text
    return f"The model or a step of the work failed. {type(error).__name__}: {text}".rstrip(": ")
