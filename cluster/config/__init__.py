"""What a run is: one YAML file, checked before anything starts. Imports neither torch, Ray nor vLLM."""

from cluster.config.load import ConfigError, load_config, parse_override
from cluster.config.problem import Problem
from cluster.config.schema import Config

__all__ = ["Config", "ConfigError", "Problem", "load_config", "parse_override"]
