"""A PostgreSQL server of the tests' own, in a temporary folder, on a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from pwd import getpwnam
from typing import Any

from sqlalchemy import make_url

PASSWORD = "s3cr3t+word"  # noqa: S105 - the server trusts everybody; it must never be shown
_FAST = ("fsync=off", "full_page_writes=off")  # safe in a crash of the server, not of the machine
# Ends the server with the signal it is told, or when the tests are gone and so can tell it none.
_KEEPER = '"$@" & server=$!; read -r how || how=QUIT; kill -"$how" $server; wait $server'
_DEBIAN = Path("/usr/lib/postgresql")


def missing() -> str | None:
    """Why no server can be started here; None if one can."""
    if _program("postgres") is None or _program("initdb") is None:
        return "no PostgreSQL here; install the package `postgresql`"
    if os.geteuid() == 0 and not _other_user():
        return "PostgreSQL does not run as root, and there is no user `postgres` or `nobody`"
    return None


def _program(name: str) -> str | None:
    newest_first = sorted(_DEBIAN.glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or next((str(path) for path in newest_first), None)


def _other_user() -> dict[str, Any]:
    """For Popen: the user whom the server runs as, if it must be another one."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            found = getpwnam(name)
        except KeyError:
            continue
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
    return {}


@dataclass(slots=True)
class Server:
    """One cluster; ``start``, ``stop`` and ``kill`` as often as wanted."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    _numbers: count[int] = field(default_factory=count)

    @classmethod
    def make(cls) -> Server:
        """A new cluster, running."""
        folder = Path(tempfile.mkdtemp(prefix="perennial-pg-"))
        server = cls(folder)
        if who := _other_user():
            os.chown(folder, who["user"], who["group"])
        server._run("initdb", "-D", "data", "-U", "perennial", "-A", "trust", "-N", "-E", "UTF8",
                    "--locale=C")  # fmt: skip
        server.start()
        return server

    def start(self) -> None:
        """Come up; return once it answers."""
        settings = [word for each in _FAST for word in ("-c", each)]
        arguments = ("-D", "data", "-k", str(self.folder), "-h", "", *settings)
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, "keeper", _program("postgres"), *arguments],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
            **_other_user(),
        )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End every connection and shut down in order."""
        self._end("INT")

    def kill(self) -> None:
        """Crash: the next start recovers from the log."""
        self._end("QUIT")

    def crash(self) -> int:
        """SIGKILL to the postmaster, which leaves its lock file and its children; its pid."""
        number = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        self._end("KILL")
        return number

    def start_again(self, seconds: float = 60.0) -> None:
        """``start``, once the children of a crashed server are gone."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self.start()
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def remove(self) -> None:
        """Stop, and leave nothing behind."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        """URL of a database nobody has used."""
        name = f"db{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove the database, whoever is connected."""
        self.sql(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def url(self, database: str) -> str:
        """As somebody would write it into PERENNIAL_DATABASE."""
        secret = PASSWORD.replace("+", "%2B")
        return f"postgresql://perennial:{secret}@/{database}?host={self.folder}"

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement outside of any transaction."""
        import psycopg

        with psycopg.connect(
            host=str(self.folder), user="perennial", dbname="postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [_program(program), *arguments], cwd=self.folder, capture_output=True, check=False,
            **_other_user(),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.decode()}")

    def _wait_until_it_answers(self, seconds: float = 60.0) -> None:
        import psycopg

        end = time.monotonic() + seconds
        while True:
            try:
                self.sql("SELECT 1")
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def _end(self, how: str) -> None:
        self.process.communicate(f"{how}\n".encode(), timeout=60)
