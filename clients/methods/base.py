"""The hooks of local training, in the order they are called.

``task_start, select, before_local, batch, loss, grad, after_step, after_local, task_end``.  A
method overrides the hooks it needs; several methods compose in the order of the run file, each hook
seeing what the one before it returned.  Methods are frozen: what they must keep goes into the
client's durable state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from strategies.protocols import ExampleIds

if TYPE_CHECKING:
    from torch import Tensor

    from clients.training import Batch, Draw, LocalRun


class ClientMethod:
    """No hook does anything: plain fine-tuning."""

    __slots__ = ()

    remembers: ClassVar[bool] = False
    """Whether it fills the memory; ``catalog.REMEMBERING`` says so to the server."""
    stores_logits: ClassVar[bool] = False
    """Whether what a class's answers take counts among an example's bytes in the memory."""
    splits: ClassVar[bool] = True
    """Whether ``loss`` over a batch is the mean of ``loss`` over its parts, weighted by examples.

    Then it may be called part by part; ``catalog.WHOLE_BATCH`` names those for which it may not.
    """

    def task_start(self, run: LocalRun) -> None:
        """The client's first local training of a task, given or noticed."""

    def select(self, run: LocalRun, ids: ExampleIds) -> ExampleIds:
        """Which of the task's local examples this round may use."""
        return ids

    def before_local(self, run: LocalRun) -> None:
        """Before the first step of a round, with the received state in the model."""

    def batch(self, run: LocalRun, draw: Draw) -> Draw:
        """The examples of one step: as it comes in, a full batch of new ones."""
        return draw

    def loss(self, run: LocalRun, batch: Batch, loss: Tensor) -> Tensor:
        """The scalar to differentiate, of a batch or of a part of one."""
        return loss

    def grad(self, run: LocalRun) -> None:
        """Edit gradients before they are clipped and used."""

    def after_step(self, run: LocalRun) -> None:
        """After every optimizer step."""

    def after_local(self, run: LocalRun) -> None:
        """After the last step, before the update is read from the model."""

    def task_end(self, run: LocalRun) -> None:
        """After the last round of a task, on the clients that took part in it.

        Where clients notice boundaries: when the next task begins, with what was kept of this one.
        """
