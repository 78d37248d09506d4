"""Everything a client can be asked, on data that stays here: who are you, train, evaluate.

A ``LocalTrainer`` serves any number of clients of one process: base model and tokenised data are
loaded once per recipe and shared, what belongs to one client lies in its durable state on disk.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from clients import profile as device
from clients.answering import Listener, Progress, unheard
from clients.answers import (
    Clock,
    blank_update,
    drift_of,
    example_counts,
    failed,
    metrics_of,
)
from clients.data import Shard
from clients.describing import profile_of
from clients.evaluation import evaluate
from clients.feedback import Feedback
from clients.local_run import capacity_of, classes_allowed, local_run, lower_of, method_of
from clients.probed import probe_run, probed
from clients.received import MissingTensorsError, ReceivedTensors
from clients.reports import Announced, Sensitivity, component_norms
from clients.settings import ClientSettings
from clients.state_store import ClientState, ClientStateStore
from clients.training import LocalRun, train
from clients.workshop import Workshop, open_workshop, shard_of
from clients.writing import NoRoomError
from strategies.catalog import COMPRESSORS, build
from strategies.errors import PerennialError
from strategies.lora import is_merged
from strategies.protocols import Compressor, ReplayMemory
from strategies.types import (
    Array,
    Assignment,
    ClientFailure,
    ClientId,
    ClientProfile,
    Evaluation,
    FailureReason,
    GroupName,
    ParamKey,
    Score,
    Tensors,
    Update,
    Work,
)
from strategies.wire import (
    decode_assignment,
    decode_recipe,
    encode_profile,
    encode_result,
    kind_of,
)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class LocalTrainer:
    """Answers messages for the clients of this process; one at a time.

    ``listener`` hears how far it is.  ``model_loads`` counts how often a base model was loaded.
    """

    settings: ClientSettings
    listener: Listener = unheard
    model_loads: int = 0
    _workshops: dict[str, Workshop] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(min(self.settings.num_threads, os.cpu_count() or 1))

    def answer(self, client_id: ClientId, message: bytes) -> bytes:
        """The reply to any message of ours; this client's faults come back as values."""
        if kind_of(message) == "recipe":
            return self._introduce(client_id, message)
        start = time.monotonic()
        assignment, tensors = decode_assignment(message)
        try:
            return encode_result(self.run(assignment, tensors, client_id, since=start))
        except PerennialError as error:
            log.warning("%s cannot do %s: %s", client_id, assignment.assignment_id, error)
            full = isinstance(error, NoRoomError)
            reason = FailureReason.NO_ROOM if full else FailureReason.CRASHED
            return encode_result(failed(assignment, reason, str(error)))

    def forget(self) -> None:
        """Drop the model and the data; the next message loads them again."""
        self._workshops.clear()
        device.free_memory()

    def _introduce(self, client_id: ClientId, message: bytes) -> bytes:
        recipe, groups = decode_recipe(message)
        try:
            return encode_profile(*self.describe(recipe, client_id, groups))
        except PerennialError as error:
            log.warning("%s cannot describe itself: %s", client_id, error)
            fault = ClientFailure(
                assignment_id="",
                client_id=client_id,
                reason=FailureReason.CRASHED,
                detail=str(error),
            )
            return encode_result(fault)

    def describe(
        self, recipe_json: str, client_id: ClientId, groups: Sequence[GroupName]
    ) -> tuple[ClientProfile, Tensors]:
        """This client's profile, and the base model's own values of ``groups``."""
        shop = self._workshop(recipe_json)
        shard = shard_of(shop, client_id)
        profile = profile_of(shop, shard, client_id, self.settings)
        return profile, shop.model.base_values(groups)

    def run(
        self, assignment: Assignment, tensors: Tensors, client_id: ClientId, *, since: float
    ) -> Update | ClientFailure:
        """Evaluate the incoming state, probe it or train on it, as far as each is asked for."""
        self.listener(Progress(phase="load"))
        shop = self._workshop(assignment.recipe)
        if refusal := _misdirected(assignment, client_id, shop):
            return refusal
        clock, shard = Clock(since), shard_of(shop, client_id)
        state = self._load(assignment, shop, shard)
        try:
            model = self._assemble(shop, assignment, tensors)
        except MissingTensorsError as error:
            return failed(assignment, FailureReason.MISSING_TENSORS, str(error))
        except NoRoomError as error:
            return failed(assignment, FailureReason.NO_ROOM, str(error))
        model |= _own(assignment, state)
        shop.model.apply(model, assignment.scale)
        clock.lap("load")
        scores = tuple[Score, ...]()
        if assignment.evaluation:
            self.listener(Progress(phase="evaluate"))
            scores, state = self._scored(shop, shard, assignment, assignment.evaluation, state)
            clock.lap("evaluate")
        self._make_room(shop, assignment)
        update = blank_update(assignment, scores, clock)
        if assignment.probe:
            self.listener(Progress(phase="probe"))
            tasks = (*assignment.met, *assignment.probe.tasks)
            allowed = classes_allowed(shop, shard, tasks)
            run = probe_run(shop, shard, assignment, state, allowed, model)
            return probed(run, assignment, update, clock)
        if not assignment.work:
            return update
        local = local_run(shop, shard, assignment, assignment.work, state)
        local.frozen = {key: value for key, value in model.items() if is_merged(key)}
        if not len(local.new_ids):
            return failed(assignment, FailureReason.NO_EXAMPLES, _nothing_of(assignment.work))
        local.lower = lower_of(local, model, assignment.scale)
        return self._trained(assignment, local, model, update, clock)

    def _make_room(self, shop: Workshop, assignment: Assignment) -> None:
        """Let go of what scoring kept, where the plan or a limit leaves no room for it."""
        limited = self.settings.memory_limit_bytes is not None
        if (assignment.probe and limited) or (assignment.work and not assignment.work.keeps):
            shop.model.kept.clear()

    def _scored(
        self,
        shop: Workshop,
        shard: Shard,
        assignment: Assignment,
        plan: Evaluation,
        state: ClientState,
    ) -> tuple[tuple[Score, ...], ClientState]:
        """The scores and, where the plan wants the answers kept, the state that holds them."""
        release = None if plan.release is None else state.answered.get(plan.release)
        scores, answered = evaluate(
            shop.model, shop.dataset, shard, plan, shop.recipe, release=release
        )
        if not plan.keep:
            return scores, state
        step = assignment.step_index
        # Whether this state or still the earlier one is the next release, the server will say.
        still = {plan.release: release} if plan.release is not None and release else {}
        state = replace(state, answered={**still, step: answered})
        self._states().save(assignment.run_id, assignment.client_id, step, state)
        return scores, state

    def _trained(
        self,
        assignment: Assignment,
        run: LocalRun,
        model: Tensors,
        update: Update,
        clock: Clock,
    ) -> Update:
        """Train, keep what is the client's own and make the rest an update."""
        reports, sent = run.work.reports, run.model.read(run.trainable)
        recorder = [Sensitivity()] if "sensitivity" in reports else []
        methods = [method_of(choice) for choice in run.work.methods]
        loss = train(run, [*methods, *recorder, Announced(self.listener)])
        clock.lap("train")
        trained, counts = run.model.read(run.trainable), example_counts(assignment, run)
        sketches = recorder[0].sketches() if recorder else {}
        if "component-norms" in reports:
            sketches |= component_norms(dict(model) | sent, trained)
        own = {key for key in trained if key.part in assignment.kept.get(key.group, ())}
        feedback = Feedback(
            chain=_compressors(run.work),
            sent=dict(model) | sent,
            counts=counts,
            residuals=dict(run.state.residuals),
        )
        delta = feedback.apply({k: trained[k] - sent[k] for k in trained if k not in own})
        clock.lap("compress")
        personal = {**run.state.personal, **{key: trained[key] for key in own}}
        self._states().save(
            assignment.run_id,
            assignment.client_id,
            assignment.step_index,
            replace(run.state, personal=personal, residuals=feedback.residuals),
        )
        clock.lap("save")
        return replace(
            update,
            delta=delta,
            num_examples=counts,
            statistics=drift_of(sent, trained),
            sketches=sketches,
            metrics=metrics_of(run, loss),
            seconds=clock.seconds(),
            peak_memory_bytes=device.peak_memory_bytes(run.model.device),
            remembered=run.remembered,
        )

    def _assemble(
        self, shop: Workshop, assignment: Assignment, tensors: Tensors
    ) -> dict[ParamKey, Array]:
        """The state the server means; it is kept for messages that will leave parts of it out."""
        states = self._states()
        received = ReceivedTensors(states.folder_of(assignment.run_id, assignment.client_id))
        groups = {group.name: group for group in shop.base.description.groups}
        model = received.assemble(assignment, tensors, seed=shop.recipe.seed, groups=groups)
        received.keep(assignment.step_index, model)
        return model

    def _load(self, assignment: Assignment, shop: Workshop, shard: Shard) -> ClientState:
        stored = self._states().load(
            assignment.run_id, assignment.client_id, before_step=assignment.step_index
        )
        capacity = capacity_of(shop, shard, assignment.work) if assignment.work else 0
        state = stored or ClientState(memory=ReplayMemory.empty(capacity))
        if assignment.work and not state.memory.num_offered:
            # It may have been scored, and its state kept, before it was first told a capacity.
            state = replace(state, memory=ReplayMemory.empty(capacity))
        return state

    def _states(self) -> ClientStateStore:
        return ClientStateStore(self.settings.state_folder)

    def _workshop(self, recipe_json: str) -> Workshop:
        if recipe_json not in self._workshops:
            self._workshops.clear()  # one model in memory, not one per run served
            self._workshops[recipe_json] = open_workshop(recipe_json, self.settings)
            self.model_loads += 1
        return self._workshops[recipe_json]


def _misdirected(
    assignment: Assignment, client_id: ClientId, shop: Workshop
) -> ClientFailure | None:
    """Why an assignment is not for this client or this base model."""
    if assignment.client_id != client_id:
        detail = f"assignment for {assignment.client_id} reached {client_id}"
        return failed(assignment, FailureReason.WRONG_PLAN, detail)
    here = shop.base.description.base_digest
    if assignment.base_digest != here:
        detail = f"planned for base {assignment.base_digest[:12]}, here is {here[:12]}"
        return failed(assignment, FailureReason.WRONG_BASE, detail)
    return None


def _nothing_of(work: Work) -> str:
    if work.source == "memory":
        return "nothing in the memory to replay"
    return f"no training examples of tasks {work.tasks}"


def _own(assignment: Assignment, state: ClientState) -> dict[ParamKey, Array]:
    """What the client uses instead of what it was sent."""
    return {
        key: value
        for key, value in state.personal.items()
        if key.part in assignment.kept.get(key.group, ())
    }


def _compressors(work: Work) -> list[Compressor]:
    return [build(COMPRESSORS, choice, key="compression") for choice in work.compression]
