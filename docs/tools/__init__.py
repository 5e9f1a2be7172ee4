"""What makes the documentation beside the words: the config reference, written from the schema and the rules.

In: the schema's classes, the rules' source. Out: docs/reference/config.md; a hook for MkDocs. Left out: the pages that
people write.
"""
