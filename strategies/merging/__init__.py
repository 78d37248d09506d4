"""What becomes of the global state at a task's end, one file per algorithm."""
