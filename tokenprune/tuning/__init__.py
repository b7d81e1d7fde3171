"""Which method is best for a model, for data and for a budget: races of candidates against the unpruned model."""
