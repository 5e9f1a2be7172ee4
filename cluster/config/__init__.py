"""What a run is: one YAML file, checked before anything starts. Imports neither torch, Ray nor vLLM.

In: YAML, overrides. Out: a frozen `Config` (schema.py and sections), and what follows from it alone: settings of actors
and learners (resolve.py), a transport (transport.py), who gets which processors (placement.py). Left out: data, models
and machines as they are (inspect).
"""

from cluster.config.loading.load import ConfigError, load_config, parse_override
from cluster.config.loading.pipeline import Pipeline, Stage, load_run
from cluster.config.problem import Problem
from cluster.config.schema import Config

__all__ = ["Config", "ConfigError", "Pipeline", "Problem", "Stage", "load_config", "load_run", "parse_override"]
