"""One message at a time on one warm trainer, whoever waits for the answer.

The work is done by a thread of the bench's own, so it does not end with the caller: who asks again
for what is being worked on waits for the same answer, who asks again for the last one is given it.
Work nobody waits for any more makes way for the next message.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from clients.answering import Listener, Progress, Trainer
from clients.jobs import (
    UNOBSERVED,
    AbandonedError,
    BenchStatus,
    BusyError,
    Job,
    Observer,
    StoppingError,
)
from strategies.types import ClientId
from strategies.wire import kind_of, text_of

log = logging.getLogger(__name__)

_WAKE_SECONDS: Final = 1.0
_GIVE_WAY_SECONDS: Final = 60.0


class Bench:
    """A trainer, its worker thread and the message being worked on."""

    def __init__(
        self,
        make: Callable[[Listener], Trainer],
        clock: Callable[[], float] = time.monotonic,
        observer: Observer = UNOBSERVED,
    ) -> None:
        """``make`` is called in the worker thread, whose settings torch may keep."""
        self._clock = clock
        self._observer = observer
        self._changed = threading.Condition()
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._trainer: Trainer | None = None
        self._current: Job | None = None
        self._last: Job | None = None
        self._fresh = True
        self._stopping = False
        self._runs = set[str]()
        self._answers = 0
        self._since = clock()
        self._thread = threading.Thread(
            target=self._work, args=(make,), name="trainer", daemon=True
        )
        self._thread.start()

    def submit(self, client_id: ClientId, message: bytes) -> Job:
        """Have a message answered; call ``leave`` when no longer waiting for it.

        Raises: BusyError while somebody waits for another answer, StoppingError at the end.
        """
        digest = hashlib.blake2b(client_id.encode() + b"\0")
        digest.update(message)
        key = digest.digest()
        run_id = text_of(message, "run_id")
        with self._changed:
            for known in (self._current, self._last):
                if known and known.key == key and not known.abandoned:
                    known.waiting += 1
                    return known
            try:
                self._make_way()
            except BusyError:
                self._observer.refused()
                raise
            job = Job(client_id, message, key, run_id)
            self._current, self._last = job, None
            self._jobs.put(job)
            return job

    def follow(self, job: Job, still_wanted: Callable[[], bool]) -> Iterator[Progress]:
        """The job's progress until it is done or nobody wants it."""
        seen = 0
        while still_wanted():
            with self._changed:
                self._changed.wait_for(partial(job.has_news, seen), _WAKE_SECONDS)
                news, done = job.progress[seen:], job.done
            seen += len(news)
            yield from news
            if done:
                return

    def leave(self, job: Job) -> None:
        """One that waited for the job does not any more."""
        with self._changed:
            job.waiting -= 1

    def status(self) -> BenchStatus:
        """What the trainer has done so far."""
        with self._changed:
            return BenchStatus(
                model_loads=self._trainer.model_loads if self._trainer else 0,
                runs_served=len(self._runs),
                answers=self._answers,
                busy=self._current is not None,
                idle_seconds=0.0 if self._current else self._clock() - self._since,
            )

    def forget(self) -> None:
        """Drop model, data and last answer.

        Raises: BusyError while an answer is worked on.
        """
        with self._changed:
            if self._current:
                raise BusyError(self._current.describe())
            self._last, self._fresh = None, True
            if self._trainer:
                self._trainer.forget()

    def forget_if_idle(self, seconds: float) -> bool:
        """Forget what has not been needed for ``seconds``; whether there was anything."""
        with self._changed:
            idle = self._current is None and self._clock() - self._since >= seconds
            if not idle or self._fresh:
                return False
            self.forget()
            return True

    def close(self, grace_seconds: float) -> bool:
        """Abandon the work at its next step; whether it ended within ``grace_seconds``."""
        with self._changed:
            self._stopping = True
            if self._current:
                self._current.abandoned = True
            self._jobs.put(None)
        self._thread.join(grace_seconds)
        return not self._thread.is_alive()

    def _make_way(self) -> None:
        """Wait until the bench is free, if nobody waits for what is on it."""
        deadline = time.monotonic() + _GIVE_WAY_SECONDS
        while not self._stopping and (orphan := self._current):
            if orphan.waiting == 0:
                orphan.abandoned = True
                left = deadline - time.monotonic()
                if self._changed.wait_for(partial(self._is_off, orphan), left):
                    continue
            raise BusyError(orphan.describe())
        if self._stopping:
            raise StoppingError("the trainer is stopping")

    def _is_off(self, job: Job) -> bool:
        return self._current is not job

    def _work(self, make: Callable[[Listener], Trainer]) -> None:
        trainer = make(self._hear)
        with self._changed:
            self._trainer = trainer
        while (job := self._jobs.get()) is not None:
            answer, error = self._answered(trainer, job)
            self._observer.ended(job, answer, error)
            with self._changed:
                job.answer, job.error, job.message = answer, error, b""
                self._current, self._fresh, self._since = None, False, self._clock()
                self._answers += answer is not None
                if job.run_id:
                    self._runs.add(job.run_id)
                # A failure may pass.  An answer would come out the same: it follows from the
                # message and the client's state before its step.
                keep = answer is not None and kind_of(answer) != "failure"
                self._last = job if keep else None
                self._changed.notify_all()

    def _answered(self, trainer: Trainer, job: Job) -> tuple[bytes | None, str | None]:
        try:
            return trainer.answer(job.client_id, job.message), None
        except AbandonedError:
            log.info("gave up an answer to %s that nobody waits for", job.client_id)
            error = "abandoned"
        except Exception as caught:
            log.exception("no answer to %s", job.client_id)
            error = f"{type(caught).__name__}: {caught}"
        trainer.forget()  # work that ended half way may have left anything in the model
        return None, error

    def _hear(self, progress: Progress) -> None:
        self._observer.heard(progress)
        with self._changed:
            job = self._current
            if job is None:
                return
            if job.abandoned:
                raise AbandonedError
            job.progress.append(progress)
            self._changed.notify_all()
