"""Which LoRA rank each group gets."""
