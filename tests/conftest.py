"""Shared set-up: a fixed hypothesis profile, float64, and CUDA tests that skip without a GPU.

No test may depend on how this processor rounds. Besides as they are, run them as

    pytest --threads 2
    pytest --misaligned 0
    ATEN_CPU_CAPABILITY=default pytest
    ATEN_CPU_CAPABILITY=avx2 pytest
    MKL_CBWR=COMPATIBLE pytest

with 2 threads instead of 1; with operands of matrix products at odd places in memory, 0 being the
seed of the places (`rounding.Misaligned`); with torch's kernels for lesser processors; and with
MKL's, where torch was built with it.
"""

import gzip
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from rounding import Misaligned

# the same examples on every machine; torch's first calls are too slow for deadlines
settings.register_profile(
    "geolatent",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("geolatent")


def pytest_addoption(parser):
    parser.addoption(
        "--threads",
        type=int,
        default=1,
        help="threads of torch (default: 1, for the tensors here are small: on a busy machine "
        "threads wait for each other longer than they work)",
    )
    parser.addoption(
        "--misaligned",
        type=int,
        metavar="SEED",
        help="put the operands of matrix products at odd places in memory",
    )


def pytest_configure(config):
    torch.set_num_threads(config.getoption("--threads"))
    # and of the programs that tests start
    os.environ.setdefault("OMP_NUM_THREADS", str(config.getoption("--threads")))


@pytest.fixture(autouse=True)
def _misaligned(request):
    seed = request.config.getoption("--misaligned")
    if seed is None:
        yield
    else:
        with Misaligned(seed):
            yield


@pytest.fixture
def float64():
    """Make float64 the default type and fix torch's seed, for one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory):
    """Lay out the 10,000 test images of MNIST for torchvision, as both of its splits.

    The original gzip'd files come from the folder in GEOLATENT_MNIST, or from shared/data/mnist
    beside the repository.
    """
    beside = Path(__file__).parents[2] / "shared" / "data" / "mnist"
    source = Path(os.environ.get("GEOLATENT_MNIST", beside))
    names = ("images-idx3-ubyte", "labels-idx1-ubyte")
    if not all((source / f"t10k-{name}.gz").is_file() for name in names):
        pytest.skip(f"needs t10k-*-ubyte.gz of MNIST: set GEOLATENT_MNIST (looked in {source})")
    root = tmp_path_factory.mktemp("torchvision")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in names:
        content = gzip.decompress((source / f"t10k-{name}.gz").read_bytes())
        for split in ("t10k", "train"):
            (raw / f"{split}-{name}").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def browser():
    """Chromium, playwright's own or the system's, without a head."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: the extra `test`"
    )
    with playwright.sync_playwright() as started:
        known = [os.environ.get("GEOLATENT_CHROMIUM", ""), started.chromium.executable_path]
        known += [shutil.which(name) or "" for name in ("chromium", "google-chrome", "chrome")]
        found = next((path for path in known if path and Path(path).is_file()), None)
        if found is None:
            pytest.skip("needs Chromium: `playwright install chromium`, or the system's")
        launched = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
