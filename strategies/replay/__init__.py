"""What a memory keeps and draws."""
