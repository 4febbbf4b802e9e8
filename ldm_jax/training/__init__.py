"""Training: state, optimizers, the step of each stage, the loop, checkpoints and logs."""
