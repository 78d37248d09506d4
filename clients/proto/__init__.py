"""The trainer's gRPC interface; all but ``trainer.proto`` is generated (``make proto``)."""
