"""Who runs where and when.

In: a recipe, a machine or a cluster. Out: a run directory with a tuned policy. At this top stand the pages that are
read top to bottom (ppo.py, online_dpo.py, dpo.py, partial.py, one_step_off.py, asynchronous.py), what drives them
(driver.py, pipeline.py, comparison.py) and the door (cli.py, errors.py); the rest lives in rooms. Left out: tensors,
engines, serving.
"""
