"""The host's side of training: data, fit, callbacks, writers, progress, checkpoints."""
