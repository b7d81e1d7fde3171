"""One module per kind of family: where its tower's layers are in vLLM, and how positions grow over a picture."""
