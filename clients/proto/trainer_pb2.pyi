from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("opening", "chunk")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    opening: Opening
    chunk: bytes
    def __init__(self, opening: _Optional[_Union[Opening, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Opening(_message.Message):
    __slots__ = ("client_id", "total_bytes")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    total_bytes: int
    def __init__(self, client_id: _Optional[str] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("progress", "opening", "chunk")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    opening: Opening
    chunk: bytes
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., opening: _Optional[_Union[Opening, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "step", "steps")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    step: int
    steps: int
    def __init__(self, phase: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ...) -> None: ...

class ResetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("model_loads", "runs_served", "answers", "busy", "device_memory_bytes", "idle_seconds")
    MODEL_LOADS_FIELD_NUMBER: _ClassVar[int]
    RUNS_SERVED_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    model_loads: int
    runs_served: int
    answers: int
    busy: bool
    device_memory_bytes: int
    idle_seconds: float
    def __init__(self, model_loads: _Optional[int] = ..., runs_served: _Optional[int] = ..., answers: _Optional[int] = ..., busy: bool = ..., device_memory_bytes: _Optional[int] = ..., idle_seconds: _Optional[float] = ...) -> None: ...
