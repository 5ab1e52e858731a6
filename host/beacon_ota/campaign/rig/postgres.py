"""Runs a private PostgreSQL cluster on a socket in a folder, without port and fsync."""

import atexit
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from sqlalchemy import create_engine

from beacon_ota import lifeline
from beacon_ota.orchestrator.db.connection import connect
from beacon_ota.orchestrator.db.schema_version import migrate_if_due

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
_USER = "beacon"


class PostgresCluster:
    """A running cluster; ``create_database()`` makes a fresh database of the newest schema."""

    def __init__(self, programs: Path):
        self.folder = Path(tempfile.mkdtemp(prefix="beacon-pg-"))
        self._programs = programs
        # PostgreSQL refuses to be run by root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.folder, "nobody")
        data = str(self.folder / "data")
        self._run_program(
            "initdb", "-D", data, "-A", "trust", "-U", _USER, "-E", "UTF8", "--no-sync"
        )
        self._options = (
            f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
            " -c full_page_writes=off -c max_connections=150"
        )
        self._guard = self._watch()
        self.start()
        atexit.register(self.stop)
        engine = connect(self._create_database("beacon_template"))
        migrate_if_due(engine)
        engine.dispose()

    def create_database(self) -> str:
        """Return the URL of a new database, in the form that the option takes."""
        return self._create_database(f"t{secrets.token_hex(6)}", " TEMPLATE beacon_template")

    def start(self) -> None:
        """Start the cluster, for the first time or after :meth:`pg_ctl` has stopped it."""
        self.pg_ctl("-o", self._options, "-l", str(self.folder / "log"), "-w", "start")

    def stop(self) -> None:
        """Stop the cluster and remove its folder."""
        atexit.unregister(self.stop)
        self._guard.kill()
        self._guard.wait()
        self.pg_ctl("-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _watch(self) -> "subprocess.Popen[bytes]":
        """Start what ends the cluster when this process ends without :meth:`stop`."""
        data, folder = self.folder / "data", self.folder
        script = (
            f"cat <&{lifeline.end()} >/dev/null; cd /; '{self._programs / 'pg_ctl'}' -D '{data}'"
            f" -m immediate stop; rm -rf '{folder}'"
        )
        return subprocess.Popen(
            ["sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lifeline.end(),),
            start_new_session=True,
            user=self._user,
        )

    def pg_ctl(self, *arguments: str) -> None:
        """Run the control program of the cluster."""
        self._run_program("pg_ctl", "-D", str(self.folder / "data"), *arguments)

    def restart(self) -> None:
        """Restart the cluster; every connection ends, as after a failure of its machine."""
        self.pg_ctl("-m", "immediate", "-w", "restart", "-l", str(self.folder / "log"))

    def database_url(self, name: str) -> str:
        """Return the URL of a database by its name."""
        return f"postgresql+asyncpg://{_USER}@/{name}?host={self.folder}"

    def _create_database(self, name: str, how: str = "") -> str:
        url = self.database_url("postgres").replace("asyncpg", "psycopg")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as conn:
            conn.exec_driver_sql(f"CREATE DATABASE {name}{how}")
        engine.dispose()
        return self.database_url(name)

    def _run_program(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            check=False,
            user=self._user,
        )
        assert not done.returncode, f"{program}: {done.stderr}"


def find_programs() -> Path | None:
    """Return the folder of the newest server's programs, None where there is no PostgreSQL."""
    found = [file for place in PLACES for file in Path("/").glob(f"{place[1:]}/initdb")]
    if not found:
        on_path = shutil.which("initdb")
        return None if on_path is None else Path(on_path).parent
    return max(found, key=lambda file: [int(n) for n in file.parts if n.isdecimal()]).parent
