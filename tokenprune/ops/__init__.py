"""Pure tensor functions that know no model."""
