"""What an evaluation task is; tasks themselves come from plugins."""
