"""Start the product in the images that deploy/build.sh made, and print what was found as JSON.

    python3 deploy/try_images.py [--tag TAG]        needs root, buildah, util-linux and iproute2

Processes start as the chart has them: the image's user, a read-only root, no capabilities and none
to gain.  They have a network of their own with nothing but loopback in it, so whatever would call
somebody fails.  A server with TLS and node keys, two clients and the dashboard answer the health
checks that their images name, carry one small run to its end, and end when they are told.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

IN_A_NETWORK = "PERENNIAL_TRY_IMAGES"
COMPILERS = re.compile(
    r"(.+-)?(cc|cc1|gcc|g\+\+|c\+\+|clang|cpp|as|ld|ld\.(bfd|gold)|make|nvcc)(-[\d.]+)?"
)
INSTALLERS = re.compile(r"(pip|uv|uvx|conda)[\d.]*")
# Mount the image read-only with /dev, /proc, a /tmp and what is given as SOURCE TARGET, then start.
ENTER = """
set -eu
root=$1; shift
mount --bind "$root" "$root" && mount -o remount,bind,ro "$root"
mount --rbind /dev "$root/dev" && mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
exec chroot "$root" "$@"
"""
RUN = [  # of the example `digits`, in seconds rather than minutes
    "federation.clients=2", "stream.classes_per_task=5", "learning.rounds_per_task=1",
    "learning.local_steps=2", "model.pretext.steps=5",
]  # fmt: skip
WELL_WITHIN = 300.0  # seconds
ENDS_WITHIN = 150.0  # seconds; a client finishes the answer under way, 120 s at most


@dataclass(frozen=True)
class Image:
    """One image, unpacked at ``root``."""

    name: str
    root: Path
    settings: Mapping
    """What the image says of its processes, as Docker writes it: Env, User, Cmd, …"""
    layers: Sequence[str]
    """Digests, the base first."""

    @property
    def user(self) -> int:
        return int(self.settings["User"].partition(":")[0])

    def starting(self, words: Sequence[str], mounts: Mapping[Path, str]) -> list[str]:
        """The command line that starts ``words`` in it; ``mounts`` are folders of ours."""
        user, _, group = self.settings["User"].partition(":")
        places = [word for source, target in mounts.items() for word in (str(source), target)]
        rights = [
            "setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs",
            "--inh-caps=-all", "--bounding-set=-all",
        ]  # fmt: skip
        within = ["env", "-i", f"--chdir={self.settings['WorkingDir']}", *self.settings["Env"]]
        enter = ["unshare", "--mount", "sh", "-c", ENTER, "sh", str(self.root), *places, "--"]
        return [*enter, *rights, *within, *words]

    def run(self, words: Sequence[str], mounts: Mapping[Path, str]) -> None:
        """Raises: CalledProcessError if it does not end well."""
        subprocess.run(self.starting(words, mounts), check=True, stdout=sys.stderr)

    @contextmanager
    def serving(
        self, words: Sequence[str], mounts: Mapping[Path, str], health: Sequence[str]
    ) -> Iterator[None]:
        """Have it run, well by ``health``, and end it with SIGTERM, which must end it well."""
        process = subprocess.Popen(self.starting(words, mounts), stdout=sys.stderr)
        try:
            self._wait_until_well(process, self.starting(health, mounts), words)
            yield
        finally:
            process.terminate()
            code = process.wait(ENDS_WITHIN)
        if code != 0:
            raise SystemExit(f"{self.name}: {' '.join(words)} ended with {code} when told to end")

    def _wait_until_well(self, process, asking, words) -> None:
        deadline = time.monotonic() + WELL_WITHIN
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SystemExit(f"{self.name}: {' '.join(words)} ended with {process.returncode}")
            if subprocess.run(asking, capture_output=True, check=False).returncode == 0:
                return
            time.sleep(1)
        raise SystemExit(f"{self.name}: {' '.join(words)} is not well after {WELL_WITHIN:.0f} s")


@contextmanager
def unpacked(name: str) -> Iterator[Image]:
    """An image as a folder that goes again."""
    container = output("buildah", "from", "--pull-never", name)
    try:
        found = json.loads(output("buildah", "inspect", container))["Docker"]
        root = Path(output("buildah", "mount", container))
        (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # as every runtime does
        yield Image(name, root, found["config"], found["rootfs"]["diff_ids"])
    finally:
        output("buildah", "rm", container)


def output(*command: str) -> str:
    """What a command prints.

    Raises: CalledProcessError.
    """
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def size(image: Image) -> dict:
    """Bytes on disk, and programs that have no business in an image."""
    total, found = 0, []
    for folder, _, names in os.walk(image.root):
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            total += status.st_size
            program = COMPILERS.fullmatch(name) or INSTALLERS.fullmatch(name)
            if program and status.st_mode & 0o111:
                found.append(str(path.relative_to(image.root)))
    if found:
        raise SystemExit(f"{image.name} has {', '.join(sorted(found))}")
    return {"image": image.name, "bytes": total, "layers": len(image.layers)}


def shared_layers(one: Image, other: Image) -> int:
    """How many layers are stored and sent once for both."""
    return sum(
        1
        for _ in takewhile(
            lambda pair: pair[0] == pair[1], zip(one.layers, other.layers, strict=False)
        )
    )


def federate(server: Image, client: Image, folder: Path) -> dict:
    """A server, its dashboard, two clients and a run; the run as `perennial runs` tells of it."""
    home, certs = {folder / "home": "/var/lib/perennial"}, {folder / "certs": "/certs"}
    works = [{folder / f"client-{number}": "/var/lib/perennial"} for number in range(2)]
    for place in (each for mounts in (home, certs, *works) for each in mounts):
        place.mkdir(mode=0o700)
        os.chown(place, server.user, server.user)

    both = {**home, **certs}
    perennial = server.settings["Entrypoint"]
    server.run([*perennial, "certs", "--to=/certs", "--host=localhost", "--nodes=2"], both)
    server.run([*perennial, "db", "upgrade"], home)
    server.run([*perennial, "doctor"], home)
    client.run([*client.settings["Entrypoint"], "doctor"], works[0])
    server.run([*perennial, "init", "digits"], home)
    with ExitStack() as running:
        command = [*perennial, *server.settings["Cmd"]]
        running.enter_context(server.serving(command, both, health(server)))
        dashboard = [*health(server)[:-1], "http://127.0.0.1:8080/healthz"]
        running.enter_context(server.serving([*perennial, "ui"], home, dashboard))
        for number, work in enumerate(works):
            command = [
                *client.settings["Entrypoint"], "client", "--superlink=localhost:8000",
                "--root-certificates=/certs/ca.crt", f"--auth-key=/certs/nodes/client-{number}.key",
                f"--number={number}", "--clients=2", "--data=/data",
                "--work=/var/lib/perennial/node",
            ]  # fmt: skip
            running.enter_context(client.serving(command, {**work, **certs}, health(client)))
        settings = [word for each in RUN for word in ("--set", each)]
        where = ["--on=localhost:8000", "--root-certificates=/certs/ca.crt"]
        server.run([*perennial, "run", "digits.toml", *settings, *where], both)
        told = server.starting([*perennial, "runs", "--format=json"], home)
        return json.loads(output(*told))["runs"][0]


def health(image: Image) -> list[str]:
    """The image's own health check."""
    kind, *words = image.settings["Healthcheck"]["Test"]
    if kind != "CMD":
        raise SystemExit(f"{image.name}: a health check by {kind}")
    return words


def version() -> str:
    """The package's, which is the images' tag."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    return re.search(r'^version = "(.+)"', text, re.MULTILINE)[1]


def main() -> None:
    """Try one server image with one client image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", default=version())
    parser.add_argument("--client", default="client-cpu", help="or client-gpu")
    given = parser.parse_args()
    if IN_A_NETWORK not in os.environ:
        again = ["unshare", "--net", "--mount", sys.executable, *sys.argv]
        os.execvpe(again[0], again, {**os.environ, IN_A_NETWORK: "1"})
    output("ip", "link", "set", "lo", "up")
    name = "localhost/perennial/{}:{}".format
    with (
        unpacked(name("server", given.tag)) as server,
        unpacked(name(given.client, given.tag)) as client,
        tempfile.TemporaryDirectory() as folder,
    ):
        Path(folder).chmod(0o711)
        found = {"images": [size(server), size(client)], "shared": shared_layers(server, client)}
        began = time.monotonic()
        found["run"] = federate(server, client, Path(folder))
        found["seconds"] = round(time.monotonic() - began, 1)
    sys.stdout.write(f"{json.dumps(found, indent=2)}\n")


if __name__ == "__main__":
    main()
