"""What an evaluation task is, and the task of the user's own questions; other tasks come from plugins."""
