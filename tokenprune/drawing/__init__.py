"""Charts as specifications of Vega-Lite: a page shows them, and PNG, SVG and PDF are drawn from the same ones."""
