"""How good mattes of whole test sets are: the benchmarks of the paper, and anybody's own pictures with true mattes.

`layouts` finds the pictures of a test set in its published folders, `protocol` says how a target is pointed at,
`engines` make the mattes, `scoring` measures one picture, `record` keeps what was measured, `report` sums it up, and
`run` does all of it.
"""
