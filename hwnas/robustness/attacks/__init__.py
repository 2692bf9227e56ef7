"""Attacks: what an adversary would try, batched, seeded, resumable, in one table of results.

Read in this order: `ball` (where a perturbation may go), `losses` (what an attack raises), `apgd`,
`fab` and `square` (the parts of AutoAttack), `carlini` (CW in l_2), `registry` (all attacks by
name), `table` (`run_attacks`: from a model and images to a table), `state` (what a killed run
leaves).
"""
