"""Other programs' files: published checkpoints, configurations and command lines become this project's."""
