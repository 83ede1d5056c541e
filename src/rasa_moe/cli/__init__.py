"""The command line: parse, call, render; nothing else. Nothing heavy is imported before a command runs."""

from rasa_moe.cli.app import app, main

__all__ = ["app", "main"]
