"""The command line: parse, call, render. What is done is done by the functions of `hwnas.api`."""
