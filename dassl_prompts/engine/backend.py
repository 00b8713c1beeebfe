"""The names that come from whichever engine is in use; both modules export the same ones."""

from dassl_prompts.engine.seam import ENGINE_NAME

if ENGINE_NAME == "dassl":
    from dassl_prompts.engine.real import *  # noqa: F403
else:
    from dassl_prompts.engine.builtin.names import *  # noqa: F403
