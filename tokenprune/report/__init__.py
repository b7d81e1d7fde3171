"""Reports that open in a browser: what a page holds, and how it becomes one self-contained HTML file."""
