"""Where answers come from: the model in this process today; a server speaks the same `Answer`."""

from rasa_moe.engines.local import Answer, generate

__all__ = ["Answer", "generate"]
