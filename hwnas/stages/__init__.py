"""The stages of the loop, one module each: the functions behind `hwnas.api`.

A stage's public function takes paths and plain values, as the command line does. Where a stage has
many settings it also takes the TOML file of `hwnas run`; what is given directly goes before it. The
function `make_...` beside it does the work on decoded settings, for the pipeline to call.
"""
