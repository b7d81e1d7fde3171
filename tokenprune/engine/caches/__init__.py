"""Cache layers that hold fewer rows than the sequence: a class for each class of transformers that can be cut exactly.

After a pruned prefill the cache of a pruned layer is shorter than the sequence. Models size their masks and count
their positions by asking cache layers for their length, so a pruned layer answers with the *unpruned* length: then
every mask that arrives at a layer covers the whole sequence, whichever layer it was sized by, and a decode step without
explicit ``position_ids`` goes on at the right position. The rows travel with the cache through beam search
(``reorder_cache``) and copies.

Each class answers for itself: what it can follow, the room it reserves, the columns of a mask that its keys are, the
bytes it holds. :data:`tokenprune.engine.cache.PRUNED_CLASSES` is the one list of them.
"""
