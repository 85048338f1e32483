"""The guest agent: PID 1 of every forkd guest. Standard library only; numpy if the root file system has it."""
