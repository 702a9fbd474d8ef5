"""The project itself: layers, addresses, exports, weight of the import, what the wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import meter_lib
import meter_migrations
import meter_worker

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "meter_lib": ROOT / "meter_lib",
    "meter_worker": ROOT / "worker" / "meter_worker",
    "meter_migrations": ROOT / "migrations" / "meter_migrations",
}
SOURCES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))

# Where each foreign thing may be imported; a folder means everything in it.
ADDRESSES = {
    "sqlite3": ("meter_lib/_sqlite/", "migrations/meter_migrations/_runner.py"),
    "psycopg": ("meter_lib/_postgres/",),
    "requests": ("worker/meter_worker/http_link/",),
    "urllib3": ("worker/meter_worker/http_link/",),
    "tenacity": ("worker/meter_worker/retry_policy.py",),
    "click": ("worker/meter_worker/cli/", "worker/meter_worker/demo/telling.py"),
    "prometheus_client": ("worker/meter_worker/metrics.py",),
    "confluent_kafka": ("worker/meter_worker/kafka_link/",),
    "fcntl": ("meter_lib/_sqlite/file_lock.py",),
}


def _imported_at_run_time(path: Path) -> set[str]:
    """Return the top-level names that a module imports when it runs, not for the checkers only."""
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
        nodes.extend(ast.iter_child_nodes(node))
    return names


@pytest.mark.parametrize("thing", sorted(ADDRESSES))
def test_each_foreign_thing_has_one_address(thing: str) -> None:
    """A library that the project stands on is imported where ARCHITECTURE.md says, only there."""
    users = {
        str(path.relative_to(ROOT)) for path in SOURCES if thing in _imported_at_run_time(path)
    }
    strays = {user for user in users if not user.startswith(ADDRESSES[thing])}
    assert (strays, bool(users)) == (set(), True)


def test_layers_point_one_way() -> None:
    """Delivery knows the outbox, the outbox knows the schema, never the other way round."""
    checked = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_environment_has_one_reader() -> None:
    """Only the settings look at the environment, save what hands it on to a child process."""
    readers = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text(encoding="utf-8"))
    }
    # The notify protocol, and what a terminal is, are told by the environment; neither is a
    # setting of ours.
    others = {
        "worker/meter_worker/demo/processes.py",
        "worker/meter_worker/notify.py",
        "worker/meter_worker/terminal.py",
    }
    assert readers - others == {"meter_lib/settings.py"}


def test_importing_the_library_loads_nothing_of_a_third_party() -> None:
    """A metering call is cheap to import into any host program."""
    probe = (
        "import sys; before = set(sys.modules); import meter_lib; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    ).stdout.split()
    foreign = {name for name in loaded if name not in sys.stdlib_module_names}
    heavy = {"dataclasses", "hashlib", "inspect", "secrets", "uuid", "ssl", "http", "email"}
    assert (foreign, heavy & set(loaded)) == ({"meter_lib", "meter_migrations"}, set())


def test_a_program_that_records_loads_no_more_than_that_takes(tmp_path: Path) -> None:
    """What delivers, operates and audits is not loaded for a host program that only records.

    Nor does a post load anything: in a child that is forked while another thread imports, that
    import never ends, and the post would wait for it.
    """
    probe = (
        "import sqlite3, sys, meter_lib; loaded = set(sys.modules)\n"
        "print(*sorted(name for name in loaded if name.startswith('meter_lib')))\n"
        "client = meter_lib.MeterClient(sys.argv[1])\n"
        "client.post('t', 'd', 'm', 1, metadata={'name': 'ü'}, idempotency_key='k')\n"
        "client.post('t', 'd', 'm', 1, metadata={'name': 'ü'}, idempotency_key='k')\n"
        "client.post_many([dict(tenant_id='t', device_id='d', meter_id='m', total_usage=1)])\n"
        "theirs = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "theirs.execute('BEGIN IMMEDIATE')\n"
        "client.post('t', 'd', 'm', 1, connection=theirs)\n"
        "print(*sorted(set(sys.modules) - loaded))\n"
    )
    loaded, with_a_post = subprocess.run(
        [sys.executable, "-c", probe, tmp_path / "outbox.db"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for_others = {"outbox", "letters", "upkeep", "moving", "_sqlite.delivery", "_sqlite.operations"}
    assert {f"meter_lib.{name}" for name in for_others} & set(loaded.split()) == set()
    assert with_a_post == ""


@pytest.mark.parametrize("package", [meter_lib, meter_worker, meter_migrations])
def test_what_is_exported_is_listed_and_there(package: object) -> None:
    """Whatever a package names as public is there."""
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def test_every_module_says_what_it_owns() -> None:
    """Each module opens with a docstring, so that its purpose can be read aloud."""
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_modules_stay_small() -> None:
    """No module grows past what one can hold in mind."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}


def test_every_test_states_its_promise() -> None:
    """Each test function has a docstring of its own."""
    silent = [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the sources as they are."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    """What is installed has no top-level name but our three, and holds the SQL and the types."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(PACKAGES)
    for package, folder in PACKAGES.items():
        here = {
            f"{package}/{path.relative_to(folder).as_posix()}"
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert {name for name in names if name.startswith(f"{package}/")} == here
        assert f"{package}/py.typed" in here
