"""Trackers of a training: TensorBoard, Weights & Biases and MLflow, which follow its metrics and previews."""
