"""What can be taken away: the adapter as a zip file, written while it is sent, and the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from fastapi import APIRouter, HTTPException
from starlette.responses import FileResponse, StreamingResponse

from orchestrator.home import Home
from orchestrator.store.base import RunRecord
from orchestrator.web.access import Reading

_CHUNK: Final = 1 << 20  # bytes
_YEAR_ONE: Final = (1980, 1, 1, 0, 0, 0)  # zip's first; the same adapter makes the same file
router = APIRouter()


class _Pipe:
    """A file that can only be written to, and emptied."""

    def __init__(self) -> None:
        self._chunks = list[bytes]()

    def write(self, data: bytes) -> int:
        """Keep the data until they are taken."""
        self._chunks.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""

    def taken(self) -> bytes:
        """What was written since the last time."""
        data, self._chunks = b"".join(self._chunks), []
        return data


def adapter_folder(run: RunRecord, home: Home) -> Path | None:
    """Where a run's newest published adapter lies here, and nothing outside the data directory."""
    folder = Path(run.adapter_path).resolve() if run.adapter_path else None
    if folder and folder.is_dir() and folder.is_relative_to(home.folder.resolve()):
        return folder
    return None


def zipped(folder: Path) -> Iterator[bytes]:
    """The folder's files as a zip file; tensors do not get smaller, so nothing is compressed."""
    pipe = _Pipe()
    with ZipFile(pipe, "w", ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            entry = ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", _YEAR_ONE)
            with path.open("rb") as file, archive.open(entry, "w", force_zip64=True) as target:
                while chunk := file.read(_CHUNK):
                    target.write(chunk)
                    yield pipe.taken()
    yield pipe.taken()


@router.get("/api/v1/runs/{run_id}/adapter", response_class=StreamingResponse)
@router.get("/runs/{run_id}/adapter.zip", include_in_schema=False)
def adapter(reader: Reading, run_id: str) -> StreamingResponse:
    """The newest published adapter, as a zip file."""
    run = reader.store.get_run(run_id)
    folder = adapter_folder(run, reader.home)
    if folder is None:
        raise HTTPException(
            404, f"run {run.run_id} has no published adapter in this data directory"
        )
    name = f'attachment; filename="{run.run_id}-{folder.name}.zip"'
    headers = {"Content-Disposition": name}
    return StreamingResponse(zipped(folder), media_type="application/zip", headers=headers)


@router.get("/api/v1/runs/{run_id}/report", response_class=FileResponse)
@router.get("/runs/{run_id}/report.html", include_in_schema=False)
def report(reader: Reading, run_id: str) -> FileResponse:
    """The run's report, one HTML file."""
    run_id = reader.run_id(run_id)
    path = reader.report_path(run_id)
    if not path.is_file():
        raise HTTPException(404, f"no report yet; `perennial report {run_id}` writes it")
    return FileResponse(path, media_type="text/html", filename=f"{run_id}.html")
