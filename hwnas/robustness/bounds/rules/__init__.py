"""Which step each function of torch is: one rule for all names under which torch has it.

A rule takes what the function takes, by the same names of parameters, with bounded values in place
of tensors. It may refuse, with a reason.
"""
