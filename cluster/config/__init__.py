"""What a run is: one YAML file, checked before anything starts. Imports neither torch, Ray nor vLLM."""

from cluster.config.loading.load import ConfigError, load_config, parse_override
from cluster.config.loading.pipeline import Pipeline, Stage, load_run
from cluster.config.problem import Problem
from cluster.config.schema import Config

__all__ = ["Config", "ConfigError", "Pipeline", "Problem", "Stage", "load_config", "load_run", "parse_override"]
