"""Sections of a recipe that are large enough for a file of their own; cluster/config/schema.py holds the others and
puts all together.

In: a mapping from YAML. Out: a validated section whose unknown keys are errors. Left out: rules over two sections
(rules).
"""
