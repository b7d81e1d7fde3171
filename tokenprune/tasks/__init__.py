"""The contract of a task, and the task of the user's own questions; other tasks come from plugins."""
