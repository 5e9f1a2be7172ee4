"""The two ways a command ends other than well. Each carries one clear sentence with the fix."""


class UserError(ValueError):
    """The input is wrong: exit code 2. The text is for the person who typed it."""


class RunFailed(RuntimeError):
    """The run failed: exit code 1. The text names the cause and the command that resumes."""


class NoAnswer(RunFailed):
    """A worker died, or did not answer in time."""


class StepLost(RunFailed):
    """What the running step was made of is gone; it can be done again from the last commit."""


class LearnerLost(NoAnswer, StepLost):
    """A rank of the learner group is gone or stuck: the group must be built again."""
