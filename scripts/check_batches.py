"""What batch experiments promise, measured at full size: python scripts/check_batches.py.

Every check runs `geolatent improvement` as a user would, on the embedded digits model, and prints
what it found; a broken promise ends the script with an error. `--only` chooses checks. The check of
a full disk needs the right to mount a small file system; the checks on Ray need the extra `ray`.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console

from geolatent.lab.contents import SUMMARY
from geolatent.lab.execution import run_shards
from geolatent.lab.latent_model import LatentModel
from geolatent.lab.pairs import Case, Shards, prior_pairs
from geolatent.lab.run import RunFolder, load_run
from geolatent.lab.solved import SolvedPairs
from geolatent.models import digits_vae
from geolatent.solvers.preconditioned import PreconditionedSolver
from geolatent.solvers.problem import Solver

# solved roughly, for what is checked is not the solver
LENGTH_TOLERANCE = 0.01
ROUGH = (
    "--solver.max_control_points=7",
    f"--length_tolerance={LENGTH_TOLERANCE}",
    "--alignment=false",
)
RAY = ("--executor=ray", "--ray.workers=2", "--ray.address=local")
# 80 small shards, for the checks that interrupt runs
SHORT = (
    "--pairs=prior",
    "--initial.kind=straight",
    "--n_pairs=160",
    "--batch_size=2",
    *ROUGH,
)
N_KILLS = 20
N_DAMAGED = 50


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    """Start a run; what it prints goes to the files beside its folder."""
    command = [sys.executable, "-m", "geolatent", "improvement", "--out", str(out), *words]
    log = out.with_name(f"{out.name}.log").open("a")
    with log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)


def log_of(out: Path) -> str:
    """Return what the runs of a folder have printed."""
    return out.with_name(f"{out.name}.log").read_text()


def finish(out: Path, *words: str) -> float:
    """Run to the end and return the seconds it took."""
    began = time.perf_counter()
    status = start(out, *words).wait()
    check(status == 0, f"{out.name} ends with status {status}: {log_of(out)[-2000:]}")
    return time.perf_counter() - began


def wait_for_parts(process: subprocess.Popen[str], out: Path, n: int) -> None:
    """Wait until a run has stored some parts."""
    while len(list(out.glob("parts/*.parquet.gz"))) < n:
        check(process.poll() is None, f"{out.name} ended early: {log_of(out)[-2000:]}")
        time.sleep(0.01)


def check(holds: bool, text: str) -> None:
    """Stop where a promise is broken."""
    if not holds:
        raise SystemExit(f"FAILED: {text}")


def check_same(out: Path, expected: Path) -> str:
    """Check that two finished runs hold the same pairs, solved alike but for rounding.

    The pairs and their codes are to be equal, and the lengths of all but one pair in twenty equal
    to 1e-4, of those to the tolerance of lengths, for rounding may tip what a solver decides.
    How many rows are the same to the bit is said, and asked of none: products of matrices round by
    the processor, the threads and the places of their operands in memory.
    """
    one, other = load_run(out), load_run(expected)
    check(one.finished and other.finished, "not finished")
    if one.pairs is None or other.pairs is None:
        raise SystemExit("FAILED: no pairs")
    numbers = one.pairs.column("pair").tolist()
    check(numbers == sorted(numbers), "rows out of order")
    for name in ("pair", "start", "end"):
        same = one.pairs.table[name].equals(other.pairs.table[name])
        check(same, f"column {name} of {out.name} differs from that of {expected.name}")
    lengths = other.pairs.column("length")
    gap = np.abs(one.pairs.column("length") / lengths - 1)
    check(gap.max() <= LENGTH_TOLERANCE, f"lengths of {out.name} differ by {gap.max():.1e}")
    tipped = int((gap > 1e-4).sum())
    check(tipped <= len(gap) / 20, f"{tipped} lengths of {out.name} differ by more than 1e-4")
    points = [run.pairs.curve.control_points for run in (one, other) if run.pairs is not None]
    equal = (points[0] == points[1]).all(2).all(1).numpy()
    for name in other.pairs.table.column_names:
        found, wanted = one.pairs.column(name), other.pairs.column(name)
        same_values = found == wanted
        if wanted.dtype.kind == "f":
            same_values |= np.isnan(found) & np.isnan(wanted)
        equal &= same_values.reshape(len(equal), -1).all(1)
    return f"{equal.sum()} of {len(equal)} rows to the bit, lengths to {gap.max():.0e}"


def executors(folder: Path) -> str:
    """2,000 pairs in this process, on Ray with 2 workers and on a Ray cluster of two nodes."""
    from ray.cluster_utils import Cluster

    words = ("--pairs=prior", "--n_pairs=2000", *ROUGH)
    seconds = [finish(folder / "local", *words), finish(folder / "ray", *words, *RAY)]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        seconds.append(finish(folder / "two", *words, *RAY, f"--ray.address={cluster.address}"))
    finally:
        cluster.shutdown()
    same = "; ".join(check_same(folder / name, folder / "local") for name in ("ray", "two"))
    times = ", ".join(f"{value:.0f} s" for value in seconds)
    return f"2,000 pairs in-process, on 2 Ray workers, on two Ray nodes: the same, {same} ({times})"


def kills(folder: Path) -> str:
    """Kill -9 at 20 random moments, resumed each time."""
    generator = random.Random(0)
    whole = finish(folder / "expected", *SHORT)
    done, stored, finished = 0, [], 0
    same: list[str] = []
    out = folder / "0"
    while done < N_KILLS:
        process = start(out, *SHORT)
        try:
            # most of a short run is its start: kill after that, up to the end
            status = process.wait(generator.uniform(0.3 * whole, whole))
            check(status == 0, log_of(out)[-2000:])
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            stored.append(len(list(out.glob("parts/*.parquet.gz"))))
        # one that was killed while it drew its figures is finished too
        if (out / SUMMARY).exists():
            same.append(check_same(out, folder / "expected"))
            finished += 1
            out = folder / str(finished)
    finish(out, *SHORT)
    same.append(check_same(out, folder / "expected"))
    return (
        f"killed {N_KILLS} times with {stored} of 80 shards stored, resumed each time, "
        f"{finished + 1} runs finished, the same as the uninterrupted one: {'; '.join(same)}"
    )


def node(folder: Path) -> str:
    """Remove a Ray node in mid-run."""
    from ray.cluster_utils import Cluster

    finish(folder / "expected", *SHORT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        out = folder / "run"
        process = start(out, *SHORT, *RAY, f"--ray.address={cluster.address}")
        wait_for_parts(process, out, 8)
        cluster.remove_node(second, allow_graceful=False)
        stored = len(list(out.glob("parts/*.parquet.gz")))
        check(process.wait() == 0, log_of(out)[-2000:])
    finally:
        cluster.shutdown()
    same = check_same(out, folder / "expected")
    return f"a Ray node removed with {stored} of 80 shards stored: the same, {same}"


def disk(folder: Path) -> str:
    """Fill a small disk."""
    finish(folder / "expected", *SHORT)
    small = folder / "disk"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False).returncode:
        return "a full disk: not checked, for mounting is not allowed here"
    try:
        out = small / "run"
        # the log would not fit either
        command = [sys.executable, "-m", "geolatent", "improvement", "--out", str(out), *SHORT]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        check(result.returncode == 1, f"status {result.returncode}")
        told = result.stderr.strip()
        check("No space left on device" in told and "\n" not in told, told)
        left = list(out.rglob("*.tmp"))
        check(not left, f"left behind: {left}")
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        check(result.returncode == 0, result.stderr)
        same = check_same(out, folder / "expected")
    finally:
        subprocess.run(["umount", str(small)], check=True)
    return f"a full disk: `{told}`; with room again the run was finished, the same, {same}"


def damage(folder: Path) -> str:
    """Flip or cut random bytes of 50 parts."""
    generator = random.Random(0)
    finish(folder / "expected", *SHORT)
    out = folder / "run"
    process = start(out, *SHORT)
    wait_for_parts(process, out, 60)
    process.send_signal(signal.SIGINT)
    status = process.wait()
    check(status == 130, f"status {status} after SIGINT: {log_of(out)[-2000:]}")
    stored = sorted(out.glob("parts/*.parquet.gz"))
    for path in generator.sample(stored, N_DAMAGED):
        content = bytearray(path.read_bytes())
        place = generator.randrange(len(content))
        if generator.random() < 0.5:
            content[place] ^= generator.randrange(1, 256)
            path.write_bytes(content)
        else:
            path.write_bytes(content[:place])
    finish(out, *SHORT)
    found = len(re.findall(r"part \d+ is damaged", log_of(out)))
    check(found == N_DAMAGED, f"{found} of {N_DAMAGED} damaged parts found")
    same = check_same(out, folder / "expected")
    return f"{found} of {N_DAMAGED} damaged parts found and solved again: the same, {same}"


def throughput(folder: Path) -> str:
    """Two Ray workers beside two processes that do half of the pairs each."""
    n_pairs = 1280
    pairs = prior_pairs(n_pairs, 2)
    codes = np.stack([pairs.start.numpy(), pairs.end.numpy()], axis=1)
    for name, part in (("all", codes), ("0", codes[::2]), ("1", codes[1::2])):
        np.save(folder / f"{name}.npy", part)
    words = ("--pairs=codes", f"--n_pairs={n_pairs}", "--initial.kind=straight")
    seconds = {}
    rates = {}
    for runs, more in ((("0", "1"), ()), (("all",), RAY)):
        began = time.perf_counter()
        outs = [folder / f"run{name}" for name in runs]
        processes = [
            start(out, *words, f"--codes={folder / name}.npy", *more)
            for out, name in zip(outs, runs, strict=True)
        ]
        seen: list[list[tuple[float, int]]] = [[] for _ in runs]
        while any(process.poll() is None for process in processes):
            for out, times in zip(outs, seen, strict=True):
                n = len(list(out.glob("parts/*.parquet.gz")))
                if n > (times[-1][1] if times else 0):
                    times.append((time.perf_counter(), n))
            time.sleep(0.02)
        check(all(process.returncode == 0 for process in processes), "a run failed")
        name = "ray" if more else "processes"
        seconds[name] = time.perf_counter() - began
        # from the first part on: starting takes both some seconds, whatever the number of pairs
        rates[name] = sum(64 * (t[-1][1] - t[0][1]) / (t[-1][0] - t[0][0]) for t in seen)
    ratio = rates["ray"] / rates["processes"]
    return (
        f"2 Ray workers {rates['ray']:.1f} pairs a second, two processes "
        f"{rates['processes']:.1f}: {ratio:.2f} (with their starts {seconds['ray']:.0f} s and "
        f"{seconds['processes']:.0f} s for {n_pairs} pairs)"
    )


def _work(n_shards: int, solver: Solver, length_tolerance: float, batch_size: int) -> Shards:
    metric = LatentModel(digits_vae()).metric()
    pairs = prior_pairs(n_shards * batch_size, 2)
    return Shards([Case(metric, pairs)], solver, length_tolerance, batch_size)


def overhead(folder: Path) -> str:
    """Time of a run beside that of its solves, at the default shard size."""
    torch.set_num_threads(1)
    n_shards, size = 10, 64
    work = _work(n_shards, PreconditionedSolver(), 1e-4, size)
    seconds = 0.0
    solve = Shards.solve

    def timed(self: Shards, *arguments: Any) -> SolvedPairs:
        nonlocal seconds
        began = time.perf_counter()
        result = solve(self, *arguments)
        seconds += time.perf_counter() - began
        return result

    Shards.solve = timed  # type: ignore[method-assign]
    try:
        began = time.perf_counter()
        with RunFolder.create(folder / "run", "improvement", {}, seed=0, device="cpu") as run:
            run_shards(run, work, console=Console(quiet=True))
            run.join()
        whole = time.perf_counter() - began
    finally:
        Shards.solve = solve  # type: ignore[method-assign]
    share = whole / seconds - 1
    check(share < 0.05, f"overhead {share:.1%}")
    each = 1000 * (whole - seconds) / n_shards
    return f"overhead of a shard of {size} pairs: {share:.1%} ({each:.0f} ms), joining included"


def memory(folder: Path) -> str:
    """Memory over 220 shards."""
    torch.set_num_threads(1)
    work = _work(220, PreconditionedSolver(max_control_points=7), LENGTH_TOLERANCE, 16)
    sizes: list[int] = []

    class Watched(RunFolder):
        def write_part(self, number: int, part: SolvedPairs) -> None:
            super().write_part(number, part)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))

    with Watched.create(folder / "run", "improvement", {}, seed=0, device="cpu") as run:
        run_shards(run, work, console=Console(quiet=True))
        run.join()
    growth = max(sizes[20:]) / sizes[19] - 1
    check(growth < 0.1, f"memory grows by {growth:.1%}")
    text = f"{sizes[19] / 2**20:.0f} MiB after 20 shards, at most {max(sizes) / 2**20:.0f} MiB"
    return f"memory: {text} in {len(sizes)} shards ({growth:+.1%})"


CHECKS = {
    each.__name__: each
    for each in (executors, kills, node, disk, damage, overhead, memory, throughput)
}


def check_batches(only: Sequence[str] = ()) -> None:
    """Check what batch experiments promise.

    Parameters
    ----------
    only
        Names of checks; all where none is given.
    """
    # a shell that starts this in the background has runs ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # threads of torch, as in Ray's workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Ray's workers give way to all other processes, which is no comparison on a busy machine
    os.environ.setdefault("RAY_worker_niceness", "0")
    for name in only or CHECKS:
        with tempfile.TemporaryDirectory() as place:
            began = time.perf_counter()
            text = CHECKS[name](Path(place))
        load = os.getloadavg()[0]
        print(f"{name}: {text} [{time.perf_counter() - began:.0f} s, load {load:.1f}]", flush=True)


if __name__ == "__main__":
    auto_cli(check_batches, as_positional=False, allow_abbrev=False)
