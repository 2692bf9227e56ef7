"""Errors, artifacts and strict decoding: what every layer stands on. Imports nothing heavy."""
