"""Shards solved in this process or on Ray, each stored as soon as it is there."""

from __future__ import annotations

import importlib.util
import logging
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from geolatent.checks import requirement
from geolatent.files import UnfinishedError
from geolatent.lab.config import Executor, RayOptions
from geolatent.lab.pairs import Shards
from geolatent.lab.printing import make_console, print_warning, work_progress
from geolatent.lab.run import RunFolder
from geolatent.lab.setup import make_device
from geolatent.lab.solved import SolvedPairs

# parts that may wait to be stored while the next shard is solved
_WAITING = 1

# a shard's number, where it is known, and its pairs or what went wrong
Outcome = tuple[int | None, SolvedPairs | str]


def check_executor(executor: Executor) -> None:
    """Raise where Ray is asked for and not installed."""
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        required = "local, for Ray is not installed (from the checkout: pip install '.[ray]')"
        raise ModuleNotFoundError(requirement("executor", required, executor))


def run_shards(
    folder: RunFolder,
    shards: Shards,
    *,
    executor: Executor = "local",
    ray: RayOptions = RayOptions(),
    device: str = "auto",
    console: Console | None = None,
) -> None:
    """Solve the shards whose parts a run folder lacks, and store each when it is there.

    A part is stored by a thread of its own while the next shard is solved, so that no device waits
    for a disk. A shard that fails does not stop the others. Parts that are damaged, or of another
    run, are told and solved again. The executor is "local", one shard after the other in this
    process, or "ray", whose workers choose the device; see `make_device`.

    Raises
    ------
    UnfinishedError
        If shards failed; their errors have been printed.
    OSError
        If a part cannot be written.
    KeyboardInterrupt
        If the user interrupts; parts that are stored stay so.
    """
    console = console if console is not None else make_console()
    whole, damaged = folder.check_parts([shards.n_rows(number) for number in range(len(shards))])
    for place, text in damaged.items():
        what = "it is solved again" if place < len(shards) else "it is left out"
        print_warning(console, f"{text}; {what}")
    missing = [number for number in range(len(shards)) if number not in whole]
    if whole:
        found = f"{len(whole)} of {len(shards)} shards are in {folder.path}"
        console.print(f"going on: {found}", soft_wrap=True)
    total = sum(map(shards.n_rows, range(len(shards))))
    done = total - sum(map(shards.n_rows, missing))
    try:
        with work_progress(console, "pairs", total, done) as progress:

            def tell(number: int, share: float) -> None:
                progress(done + share * shards.n_rows(number))

            outcomes = (
                _solve_here(shards, missing, tell)
                if executor == "local"
                else _solve_on_ray(shards, missing, ray, device)
            )
            with closing(outcomes), _Writer(folder, whole) as writer:
                for number, outcome in outcomes:
                    if number is None or isinstance(outcome, str):
                        which = "a shard" if number is None else f"shard {number}"
                        print_warning(console, f"{which} failed: {outcome}")
                        continue
                    writer.store(number, outcome)
                    done += shards.n_rows(number)
                    progress(done)
        failed = len(shards) - len(whole)
        if failed:
            raise UnfinishedError(f"{failed} of {len(shards)} shards failed.")
    except (KeyboardInterrupt, OSError, UnfinishedError) as error:
        kept = f"{len(whole)} of {len(shards)} shards are stored in {folder.path}"
        error.add_note(f"{kept}; run the same command again to go on.")
        raise


class _Writer:
    """A thread that stores parts, in their order.

    Leaving the block waits for it, whatever ended the block, and raises what went wrong in storing
    where nothing else did.

    Parameters
    ----------
    folder
        Where to.
    whole
        The numbers of the parts that are stored, to which others are added.
    """

    def __init__(self, folder: RunFolder, whole: set[int]) -> None:
        self._folder = folder
        self._whole = whole
        self._thread = ThreadPoolExecutor(1, "parts")
        self._waiting: deque[tuple[int, Future[None]]] = deque()

    def __enter__(self) -> Self:
        return self

    def store(self, number: int, part: SolvedPairs) -> None:
        """Store a part; wait while as many as may wait are not stored, and raise their errors."""
        self._waiting.append((number, self._thread.submit(self._folder.write_part, number, part)))
        while len(self._waiting) > _WAITING or (self._waiting and self._waiting[0][1].done()):
            self._settle()

    def _settle(self) -> None:
        number, stored = self._waiting.popleft()
        stored.result()
        self._whole.add(number)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        while self._waiting:
            try:
                self._settle()
            except OSError:
                if error is None:
                    raise


def _attempt(
    shards: Shards, number: int, callback: Callable[[float], None] | None = None
) -> SolvedPairs | str:
    """Solve a shard; where that raises, return what it raised as text."""
    try:
        return shards.solve(number, callback)
    except (ValueError, TypeError) as error:
        return str(error)
    except Exception:  # whatever it is, the other shards are to be solved
        return traceback.format_exc()


def _solve_here(
    shards: Shards, numbers: Iterable[int], tell: Callable[[int, float], None]
) -> Generator[Outcome, None, None]:
    for number in numbers:
        yield number, _attempt(shards, number, partial(tell, number))


class _Worker:
    """A process of Ray's that holds the cases and solves shards of them."""

    def __init__(self, work: list[Any], threads: int) -> None:
        import ray

        torch.set_num_threads(threads)
        self.shards: Shards = ray.get(work[0])

    def solve(self, number: int) -> Outcome:
        return number, _attempt(self.shards, number)


def _solve_on_ray(
    shards: Shards, numbers: list[int], options: RayOptions, device: str
) -> Generator[Outcome, None, None]:
    """Solve shards by a pool of Ray's actors; what they need is sent to them once.

    Actors that die are started again, where there is room, and their shard with them.
    """
    if not numbers:
        return
    import ray
    from ray.exceptions import RayError
    from ray.util import ActorPool

    connected = ray.is_initialized()
    if not connected:
        ray.init(options.address, include_dashboard=False, logging_level=logging.WARNING)
    try:
        kind = device if device == "auto" else torch.device(device).type
        found = ray.cluster_resources()
        n_gpus = int(found.get("GPU", 0)) if kind in ("auto", "cuda") else 0
        room = n_gpus or int(found.get("CPU", 1)) // options.threads
        n_workers = min(options.workers or max(1, room), len(numbers))
        work = _put(shards, kind)
        actor = ray.remote(
            num_cpus=options.threads,
            num_gpus=1 if n_gpus else 0,
            max_restarts=options.restarts,
            # while its worker is started again; one that is not loses its shard
            max_task_retries=-1,
        )(_Worker)
        pool = ActorPool([actor.remote([work], options.threads) for _ in range(n_workers)])
        for number in numbers:
            pool.submit(lambda worker, number: worker.solve.remote(number), number)
        while pool.has_next():
            try:
                yield pool.get_next_unordered()
            except RayError as error:
                yield None, f"{type(error).__name__}: {error}"
            # the room of a worker without work may be what one that died waits for
            while (idle := pool.pop_idle()) is not None:
                ray.kill(idle)
    finally:
        if not connected:
            ray.shutdown()


def _put(shards: Shards, device: str) -> Any:
    """Store shards in Ray so that their tensors arrive on the device that a worker chooses."""
    import ray
    from ray.util import deregister_serializer, register_serializer

    kinds = (Tensor, nn.Parameter)
    for kind in kinds:
        register_serializer(
            kind,
            serializer=_to_array,
            deserializer=partial(_from_array, kind=kind, device=device),
        )
    try:
        return ray.put(shards)
    finally:
        for kind in kinds:
            deregister_serializer(kind)


def _to_array(tensor: Tensor) -> tuple[NDArray[Any], bool]:
    return tensor.detach().cpu().numpy(), tensor.requires_grad


def _from_array(sent: tuple[NDArray[Any], bool], kind: type[Tensor], device: str) -> Tensor:
    array, requires_grad = sent
    tensor = torch.tensor(array, device=make_device(device))
    if kind is nn.Parameter:
        return nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)
