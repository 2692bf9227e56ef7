"""Spaces that search channel widths: RNAS-CL's, by DMaskingNAS masks."""
