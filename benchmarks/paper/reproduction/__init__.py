"""The tables of the EntropyPrune paper (arXiv 2602.17196) as jobs of lmms-eval: plan, cost, execution, results."""
