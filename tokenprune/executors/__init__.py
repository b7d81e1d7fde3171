"""Long runs on several workers: who starts them, how they are spoken to, and what happens when one dies."""
