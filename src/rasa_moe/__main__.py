"""Let `python -m rasa_moe` do what the console script does."""

from rasa_moe.cli import main

if __name__ == "__main__":
    main()
