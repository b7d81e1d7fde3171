"""Tables: a column is one object, and each renderer writes the same columns: terminal, Markdown, LaTeX, CSV, pages."""
