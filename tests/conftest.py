"""What all tests share: nobody runs them as root, and what is slow to make is made once.

`make test` has several processes run them (pytest-xdist), a file each at a time: see _shared_out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestctl import Pool
from guestctl.places import Places
from guestctl.rundir import pool_names

ROOT = Path(__file__).parent.parent
FUZZ = pytest.StashKey[Path]()
_RUNTIMES = pytest.StashKey[list[Path]]()
_FUZZING = pytest.StashKey["subprocess.Popen[bytes]"]()
_FUZZ_TESTS = "test_fuzz_translate.py"
# What takes longest goes first, so that it is not what everybody waits for at the end.
_LONGEST = (
    "test_offload.py",
    "test_builder.py",
    "test_oracle.py",
    "test_faults.py",
    "test_jobs.py",
)


def _shared_out(nodeid: str) -> str:
    """What of the tests goes to one process: a file, since its tests share what they have made.

    The two security models have guests of their own, so that such a file is two.
    """
    file, _, test = nodeid.partition("::")
    models = [model for model in ("mapped-file", "mapped-xattr") if model in test]
    return f"{file} {models[0]}" if "/guest/" in file and models else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _shared_out(nodeid)

    config.option.loadscopereorder = False
    return Scheduler(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Processes that share the tests have pools, locks and slots of their own."""
    # What a shell starts in the background, it starts with Ctrl-C ignored, nohup with SIGHUP, and
    # our children would have it so too.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    config.stash[_RUNTIMES] = []
    given = getattr(config, "workerinput", {})
    if "runtime" in given:
        os.environ["XDG_RUNTIME_DIR"] = given["runtime"]
    if "fuzz" in given:
        config.stash[FUZZ] = Path(given["fuzz"])


def pytest_sessionstart(session: pytest.Session) -> None:
    """What claims to work for an ordinary user must be tested as one."""
    if os.getuid() == 0:
        pytest.exit("run the tests as a user that is not root: make test", returncode=2)
    config = session.config
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if config.getoption("numprocesses", None) and whole and not config.option.collectonly:
        _fuzz(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """What a process is told that shares the tests; what it leaves is cleared away at the end."""
    made = Path(tempfile.mkdtemp(prefix="guestctl-run-"))
    node.config.stash[_RUNTIMES].append(made)
    node.workerinput["runtime"] = str(made)
    if FUZZ in node.config.stash:
        node.workerinput["fuzz"] = str(node.config.stash[FUZZ])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long ones first; what runs beside the others is judged at the end."""

    def rank(item: pytest.Item) -> tuple[bool, int, str]:
        name = item.path.name
        long = name in _LONGEST and item.path.parent.name == "guest"
        order = _LONGEST.index(name) if long else len(_LONGEST)
        return name == _FUZZ_TESTS, order, _shared_out(item.nodeid) if long else ""

    items.sort(key=rank)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts the fuzz targets when their tests are among those to run, and nobody else has."""
    config = session.config
    if config.option.collectonly or FUZZ in config.stash:
        return
    if any(item.path.name == _FUZZ_TESTS for item in session.items):
        _fuzz(config)


def _fuzz(config: pytest.Config) -> None:
    """Starts the fuzz targets, one after the other; what they say, and at last their status, goes
    to a file."""
    seconds = int(os.environ.get("GUESTCTL_FUZZ_SECONDS", "60")) // 3
    one = f"{sys.executable} -m tests.fuzz.fuzz_translate --seconds {seconds}"
    handle, name = tempfile.mkstemp(prefix="guestctl-fuzz-")
    script = f'{one} archive && {one} tree && {one} vmeta; echo "status $?"'
    config.stash[FUZZ] = Path(name)
    config.stash[_FUZZING] = subprocess.Popen(
        ["nice", "-n", "10", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=handle,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        start_new_session=True,
    )
    os.close(handle)


def pytest_unconfigure(config: pytest.Config) -> None:
    process = config.stash.get(_FUZZING, None)
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        config.stash[FUZZ].unlink(missing_ok=True)
    for runtime in config.stash.get(_RUNTIMES, []):
        # Of tests that were interrupted: others take their pools down themselves.
        left = dataclasses.replace(Places.of_user(), runtime=runtime / "guestctl")
        for name in pool_names(left.runtime):
            Pool.attach(name, places=left).down()
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """What a test calls in its own process that is a process's entry elsewhere sets the umask."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def places() -> Places:
    """The user's own folders: the image cache in them makes the second run quick."""
    return Places.of_user()


@pytest.fixture
def own_places(tmp_path: Path, places: Places) -> Places:
    """Folders of this test's own, with the user's images."""
    for name in ("cache", "run", "config"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "cache" / "images").symlink_to(places.cache / "images")
    return Places(tmp_path / "cache", tmp_path / "run", tmp_path / "config", tmp_path / "data")


@pytest.fixture(scope="session")
def program() -> Path:
    """The agent for this machine, with sanitizers: what `make check` builds."""
    out = ROOT / "build" / "guest-init"
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "-s", "-C", ROOT / "guest-init", "agent"], check=True, timeout=300)
    return out / "agent"
