"""From YAML files and overrides to checked configs: a recipe (load.py) or a pipeline of recipes (pipeline.py).

In: paths, `key.path=value` overrides. Out: a Config or a Pipeline, or one ConfigError with every problem. Left out:
what a key may be (the sections), what keys must keep among each other (rules).
"""
